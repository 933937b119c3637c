#!/usr/bin/env bash
# Prepare a machine for `python scripts/benchmark.py gpu`. Without arguments it lists what is missing.
#
#   scripts/gpu_setup.sh                    list missing packages; exit status 1 if a required one is missing
#   scripts/gpu_setup.sh download [DIR]     with a network: download wheels for another machine to DIR (.whl)
#   scripts/gpu_setup.sh install [DIR]      install what is missing: from the wheels in DIR if it exists, without a
#                                           network, else from the package index
#
# PYTHON=python3.12 selects the interpreter; TARGET_PYTHON=3.12 is the version that wheels are downloaded for; NEEDS="trl==1.16.0 ..."
# adds packages, without their dependencies.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PYTHON=${PYTHON:-python3}
action=${1:-check} wheels=${2:-.whl} target=${TARGET_PYTHON:-3.12}

# module:requirement. torch and torchvision are expected to be there, built for the machine's driver.
required=(torch:torch torchvision:torchvision transformers:transformers accelerate:accelerate peft:peft
  safetensors:safetensors numpy:numpy PIL:pillow psutil:psutil tqdm:tqdm xxhash:xxhash matplotlib:matplotlib
  datasets:datasets dill:dill multiprocess:multiprocess hydra:hydra-core omegaconf:omegaconf
  antlr4:antlr4-python3-runtime==4.9.3 av:av pytest:pytest)
optional=(deepspeed:deepspeed hjson:hjson cpuinfo:py-cpuinfo pydantic:pydantic pydantic_core:pydantic-core
  annotated_types:annotated-types typing_inspection:typing-inspection xdist:pytest-xdist execnet:execnet
  flash_attn:flash-attn flash_attn_interface:flash-attn-3)

missing() { # MODULE:REQUIREMENT... -> requirements of the modules that this Python cannot find
  "$PYTHON" - "$@" <<'PY'
import sys
from importlib.util import find_spec
print(*[pair.partition(":")[2] for pair in sys.argv[1:] if find_spec(pair.partition(":")[0]) is None])
PY
}

case $action in
  check)
    read -ra absent <<<"$(missing "${required[@]}")"
    read -ra extra <<<"$(missing "${optional[@]}")"
    echo "required and missing: ${absent[*]:-none}"
    echo "optional and missing: ${extra[*]:-none} (their parts of the benchmark are skipped)"
    [ ${#absent[@]} -eq 0 ] && echo "ready: $PYTHON scripts/benchmark.py gpu out=runs/gpu" && exit 0
    echo "install them: scripts/gpu_setup.sh install; without a network, run scripts/gpu_setup.sh download on another machine and copy $wheels"
    exit 1
    ;;
  download)
    mkdir -p "$wheels"
    platforms=()
    for version in 2_28 2_27 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
    options=(--quiet --no-deps --dest "$wheels" --only-binary=:all: --python-version "$target" --implementation cp
      "${platforms[@]}" --platform manylinux2014_x86_64 --platform any)
    # What a GPU machine with PyTorch and transformers usually lacks, as releases that fit each other.
    for name in hydra-core "omegaconf<2.4" av datasets dill multiprocess xxhash pytest-xdist execnet hjson \
      py-cpuinfo pydantic pydantic-core annotated-types typing-inspection ${NEEDS:-}; do
      "$PYTHON" -m pip download "${options[@]}" "$name"
    done
    "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" antlr4-python3-runtime==4.9.3 deepspeed
    du -sh "$wheels"
    ;;
  install)
    read -ra absent <<<"$(missing "${required[@]}" "${optional[@]}")"
    if compgen -G "$wheels/*.whl" >/dev/null; then # the lists contain all dependencies, so pip resolves none
      carried=()
      for name in "${absent[@]}"; do
        base=${name%%==*}
        if compgen -G "$wheels/${base//-/_}-*.whl" >/dev/null; then carried+=("$name"); fi
      done
      [ ${#carried[@]} -eq 0 ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --find-links "$wheels" "${carried[@]}"
      echo "installed: ${carried[*]:-nothing}"
      echo "frameworks to compare with: export PIP_NO_INDEX=1 PIP_FIND_LINKS=$(realpath "$wheels") before the benchmark"
    else
      read -ra absent <<<"$(missing "${required[@]}")"
      [ ${#absent[@]} -eq 0 ] || "$PYTHON" -m pip install --quiet "${absent[@]}"
      echo "installed: ${absent[*]:-nothing}"
    fi
    exec "$here/gpu_setup.sh" check "$wheels"
    ;;
  *)
    echo "error: unknown action '$action': use check, download or install" >&2
    exit 2
    ;;
esac
