#!/bin/sh
# Compile what the cuda variant needs, into wheels:  cuda_wheels.sh FOLDER
# Variables: ARCHITECTURES (compute capabilities), FLASH_ATTN (1: flash-attn, too), MAX_JOBS (compilers at once).
# nvcc comes from the package index, in the release whose libraries torch uses. It is installed in this build stage only.
set -eu
wheels=$1
pip=/opt/venv/bin/pip
python=/opt/venv/bin/python
locks=requirements/locks

apt-get update
apt-get install -y --no-install-recommends g++ python3-dev
toolkit=$("$python" -c 'from importlib.metadata import version; print(version("cuda-toolkit"))')
"$pip" install "cuda-toolkit[nvcc,cccl,crt]==$toolkit"
CUDA_HOME=$("$python" -c 'import nvidia.cu13; print(nvidia.cu13.__path__[0])')
# The linker looks in lib64, for names without a version.
[ -e "$CUDA_HOME/lib64" ] || ln -s lib "$CUDA_HOME/lib64"
for library in "$CUDA_HOME"/lib/lib*.so.*; do
  plain=${library%%.so.*}.so
  [ -e "$plain" ] || ln -s "$(basename "$library")" "$plain"
done
export CUDA_HOME PATH="/opt/venv/bin:$CUDA_HOME/bin:$PATH" TORCH_CUDA_ARCH_LIST="$ARCHITECTURES"
export MAX_JOBS="${MAX_JOBS:-$(nproc)}"

# From the sources, whose hashes are in the locks as well.
compile() { "$pip" wheel --no-deps --no-build-isolation --require-hashes -w "$wheels" "$@"; }
awk '/^gsplat==/ { found = 1 } found { print } found && !/\\$/ { exit }' "$locks/cuda.txt" >/tmp/gsplat.txt
compile --no-binary gsplat -r /tmp/gsplat.txt
if [ "${FLASH_ATTN:-0}" = 1 ]; then
  FLASH_ATTENTION_FORCE_BUILD=TRUE compile --no-binary flash-attn -r "$locks/flash-attn.txt"
fi
