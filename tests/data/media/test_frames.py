import numpy as np
import pytest

from data.media.frames import FramePolicy, frame_count, frame_times


@pytest.mark.parametrize(
    ("available", "seconds", "count"),
    [(250, 10, 20), (25, 1, 4), (100_000, 4000, 768), (3, 0.1, 2), (1, 0.04, 0), (33, 1.1, 4), (275, 11.4, 22)],
)
def test_the_count_follows_the_rate_within_the_limits_and_is_even(available, seconds, count):
    assert frame_count(available, seconds, FramePolicy(fps=2.0, min_frames=4, max_frames=768)) == count


def test_odd_limits_are_drawn_inwards():
    assert frame_count(100, 10, FramePolicy(fps=2, min_frames=2, max_frames=7)) == 6
    assert frame_count(100, 1, FramePolicy(fps=1, min_frames=3)) == 4


def test_times_lie_on_the_source_raster_from_first_to_last_frame():
    times = frame_times(10.0, 25.0, FramePolicy(fps=2.0))
    assert len(times) == 20 and times[0] == 0 and times[-1] == 249 / 25
    assert np.allclose((times * 25).round(), times * 25)
    assert np.diff(times).min() > 0.4 and np.diff(times).max() < 0.6


def test_wanting_more_than_there_is_takes_every_frame_once():
    assert np.allclose(frame_times(1.2, 10.0, FramePolicy(fps=100.0)), np.arange(12) / 10)


@pytest.mark.parametrize("bad", [{"fps": 0}, {"min_frames": 1}, {"min_frames": 8, "max_frames": 4}, {"max_pixels": 0}])
def test_an_impossible_policy_is_named(bad):
    with pytest.raises(ValueError, match=next(reversed(bad))):
        FramePolicy(**bad)
