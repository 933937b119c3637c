from data.formats.rows import load as load
