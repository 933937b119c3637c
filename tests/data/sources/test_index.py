import pickle

from data.encode import Encoder
from data.sources.index import audit, measure
from data.types import IGNORE
from tests.data.conftest import POLICY


def test_the_audit_finds_unusable_files_before_training(samples):
    audited = audit(samples, progress=False)
    kept, lost = audited.samples, audited.lost
    assert [sample.id for sample in kept] == ["0", "1", "2", "4", "6", "7", "8"]
    assert [each.id for each in lost] == ["3", "5"]
    assert [sample.id for sample in kept[1:3]] == ["1", "2"] and pickle.loads(pickle.dumps(kept))[-1].id == "8"
    again = audit(kept, progress=False)
    assert again.samples is kept and again.lost == ()


def test_samples_are_measured_by_headers_alone_as_they_are_encoded(samples, encoder):
    audited, sizes = measure(audit(samples, progress=False), encoder, progress=False)
    assert len(sizes) == len(audited.samples) == 7
    for place, sample in enumerate(audited.samples):
        encoding = encoder.encode(sample)
        (t, h, w), (found, each) = encoding.video_grid_thw_V3[0].tolist(), (sizes.grids_V[place], sizes.tokens_V[place])
        assert (t, h * w // 4) == (found, each)
        assert sizes.fixed_S[place] + found * each == len(encoding.input_ids_N)
        assert sizes.patches_S[place] == len(encoding.pixel_values_videos) and sizes.frames_S[place] == 2 * t
        assert sizes.targets_S[place] == (encoding.labels_N != IGNORE).sum()
        assert sizes.pairs_S[place] == t * (h * w) ** 2


def test_rows_that_are_too_long_are_left_out_before_planning(samples, processor):
    audited, sizes = measure(audit(samples, progress=False), Encoder(processor, POLICY, max_tokens=9), progress=False)
    assert len(sizes) == 0 and "data.max_tokens=9" in audited.lost[-1].reason
