"""Everything worth measuring on a GPU that is at hand for minutes: jobs in order of value, until the time is up."""
