# Sourced by the run.sh of each model server, which calls `start`. Every check says in one line what is missing and how
# to mend it. POSIX sh.

fail() {
  echo "$1" >&2
  exit 1
}

# The environment goes before .env, as it does for docker compose.
read_env() {
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in '' | '#'*) continue ;; esac
    name=${line%%=*}
    eval "known=\${$name+yes}"
    [ -n "$known" ] || export "$name=${line#*=}"
  done <.env
}

need_docker() {
  command -v docker >/dev/null || fail "docker is missing: install it, https://docs.docker.com/engine/install/"
  docker info >/dev/null 2>&1 ||
    fail "docker does not answer: start it (sudo systemctl start docker), or join its group (sudo usermod -aG docker \$USER)"
  docker compose version >/dev/null 2>&1 ||
    fail "docker has no compose: install the package docker-compose-plugin, https://docs.docker.com/compose/install/linux/"
}

# need_runtime NAME HOW_TO_MEND
need_runtime() {
  case $(docker info --format '{{json .Runtimes}}') in
  *"\"$1\""*) ;;
  *) fail "docker does not know the runtime $1: $2" ;;
  esac
}

need_gaudi() {
  command -v hl-smi >/dev/null ||
    fail "hl-smi is missing: install Gaudi's driver, https://docs.habana.ai/en/latest/Installation_Guide/"
  hl-smi >/dev/null 2>&1 || fail "hl-smi finds no Gaudi: check that the driver is loaded (lsmod | grep habanalabs)"
  need_runtime habana "install habanalabs-container-runtime and register it, then restart docker"
}

need_nvidia_gpu() {
  command -v nvidia-smi >/dev/null || fail "nvidia-smi is missing: install NVIDIA's driver"
  nvidia-smi >/dev/null 2>&1 || fail "nvidia-smi finds no GPU: check that the driver is loaded (lsmod | grep nvidia)"
  need_runtime nvidia "install nvidia-container-toolkit, run nvidia-ctk runtime configure, then restart docker"
}

need_intel_gpu() {
  [ -e "${RENDER_DEVICE:-/dev/dri/renderD128}" ] ||
    fail "${RENDER_DEVICE:-/dev/dri/renderD128} is missing: install Intel's GPU driver, or set RENDER_DEVICE"
}

need_port() {
  case $LLM_ENDPOINT_PORT in '' | *[!0-9]*) fail "LLM_ENDPOINT_PORT = $LLM_ENDPOINT_PORT: not a port number" ;; esac
  command -v ss >/dev/null || return 0 # Docker will say it then.
  [ -z "$(ss -Hltn "sport = :$LLM_ENDPOINT_PORT")" ] ||
    fail "port $LLM_ENDPOINT_PORT is taken: set LLM_ENDPOINT_PORT to a free one"
}

need_token() {
  [ -z "$HF_TOKEN" ] || return 0
  case $LLM_NAME in
  meta-llama/* | mistralai/* | google/gemma*)
    fail "$LLM_NAME is gated: accept its licence on huggingface.co, then set HF_TOKEN to your token"
    ;;
  esac
}

need_disk() {
  mkdir -p "$DATA_PATH" || fail "DATA_PATH = $DATA_PATH: cannot be made; set it to a folder of yours"
  free=$(df -Pk "$DATA_PATH" | awk 'NR == 2 { print int($4 / 1048576) }')
  [ "$free" -ge "$MIN_DISK_GB" ] ||
    fail "$DATA_PATH has $free GB free, and MIN_DISK_GB asks for $MIN_DISK_GB: make room, or set DATA_PATH elsewhere"
}

need_shared_memory() {
  shared=$(df -Pk /dev/shm | awk 'NR == 2 { print int($2 / 1024) }')
  [ "$shared" -ge 1024 ] ||
    fail "/dev/shm has $shared MB, and 1024 are needed: enlarge it (sudo mount -o remount,size=2g /dev/shm)"
}

# start "DEVICES" "KIND_OF_GPU" DEVICE [ARGUMENTS OF docker compose up]
start() {
  devices=$1 gpu=$2 device=${3:-}
  [ -f "compose.${device:-none}.yaml" ] ||
    fail "usage: run.sh DEVICE [arguments of docker compose up], where DEVICE is one of: $devices"
  shift 3
  read_env
  need_docker
  case $device in
  gaudi) need_gaudi ;;
  gpu) "need_${gpu}_gpu" ;;
  esac
  need_port
  need_token
  need_disk
  ! grep -q 'ipc: host' "compose.$device.yaml" || need_shared_memory
  exec docker compose -f "compose.$device.yaml" up "$@"
}
