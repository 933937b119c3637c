"""A list of frames and a file, read by a real vLLM's loader with the options that the printed command gives."""

from __future__ import annotations

import json
import subprocess

import pytest

from evs.families.servers import QWEN2_5, QWEN3
from evs.policy import Policy
from tests.data import videos
from train.export.serving_metadata import media_io

pytestmark = pytest.mark.serving

READ = """
import json, sys
import numpy as np
from vllm.multimodal.media.connector import MediaConnector
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

job = json.loads(sys.argv[1])
frames = np.zeros((40, 28, 28, 3), dtype=np.uint8)
data = "data:video/jpeg;base64," + VideoMediaIO(ImageMediaIO()).encode_base64(frames)
said = []
for options in (job["options"], {}):
    connector = MediaConnector(media_io_kwargs=options, allowed_local_media_path="/")
    for url in (data, job["file"]):
        read = connector.fetch_video(url, video_processor=job["processor"])
        read = getattr(read, "media", read)
        said.append([int(index) for index in read[1]["frames_indices"]])
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    ("architecture", "processor"), [(QWEN2_5, "Qwen2VLVideoProcessor"), (QWEN3[0], "Qwen3VLVideoProcessor")]
)
def test_a_frame_list_is_kept_whole_and_a_file_sampled_as_without(
    environment, tmp_path, architecture, processor
) -> None:
    file = videos.write(tmp_path / "clip.mp4", [i / 25 for i in range(25 * 40)])
    job = {"options": media_io(Policy(), architecture), "file": file.as_uri(), "processor": processor}
    command = [environment("0.32.0"), "-c", READ, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    listed, sampled, listed_before, sampled_before = json.loads(done.stdout.splitlines()[-1])
    assert (len(listed), len(listed_before)) == (40, 32)
    assert sampled == sampled_before and len(sampled) == 80
