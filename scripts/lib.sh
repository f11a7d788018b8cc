# shellcheck shell=bash
# What the scripts share. Sourced by bash scripts that have set `root` to the repository.
set -euo pipefail

# Everything that is fetched or built outside the repository lives here. HOME is absent in some CI systems.
export HOME="${HOME:-/root}"
cache="${ORLOP_CACHE:-$HOME/.cache/orlop}"
tools="$cache/tools"
# Debian's plain `su` keeps a PATH without the administrator's programs; rustup's takes effect at the next login only.
export PATH="$tools:$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

# What the cluster itself needs from the host, what building it needs, and what the tests use besides.
# shellcheck disable=SC2034
host_packages=(nftables iproute2 conntrack busybox-static libseccomp2 ca-certificates python3)
# shellcheck disable=SC2034
build_packages=(gcc libc6-dev libseccomp-dev pkg-config protobuf-compiler libprotobuf-dev)
# shellcheck disable=SC2034
test_packages=(procps bsdutils util-linux openssl curl diffutils python3-yaml)

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "run this as root: containers, namespaces and nftables need it"; }

# need_packages NAME...: installs the Debian packages that are not there yet.
need_packages() {
  local missing=() name
  command -v dpkg-query >/dev/null || die "this is not Debian; install the equivalents of: $*"
  for name in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
  done
  if [ ${#missing[@]} = 0 ]; then return 0; fi
  [ "$(id -u)" = 0 ] || die "missing packages: run 'apt-get install ${missing[*]}' as root"
  say "installing ${missing[*]}"
  # A machine that has just been started may be upgrading itself: wait for its lock.
  local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
  "${apt[@]}" update </dev/null
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null </dev/null
}

# need_cargo [COMPONENT...]: Rust is the one thing that is not installed for the user.
need_cargo() {
  local component
  command -v cargo >/dev/null || die "Rust is missing: install it with rustup (https://rustup.rs)"
  for component in "$@"; do
    cargo "$component" --version >/dev/null 2>&1 || die "cargo $component is missing: run 'rustup component add rustfmt clippy'"
  done
}

# The program that the scripts use, and building it.
orlop="${ORLOP_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/orlop}"

build_orlop() {
  if [ -n "${ORLOP_BIN:-}" ]; then return 0; fi
  need_packages "${build_packages[@]}"
  need_cargo
  say "building orlop (minutes the first time)"
  local quiet=(--quiet)
  if [ -t 2 ]; then quiet=(); fi
  (cd "$root" && cargo build --release --locked "${quiet[@]}" -p orlop)
}

# is_server PID DATA: whether that process is the server of this data directory. The number alone says nothing: it may
# belong to another process since, and a dead process that its parent has not noticed yet still has its number.
is_server() {
  [ -n "$1" ] || return 1
  { tr '\0' '\n' <"/proc/$1/cmdline"; } 2>/dev/null | grep -xF -- "$2" >/dev/null
}

# stop_server PID DATA: asks, waits ten seconds, insists.
stop_server() {
  kill "$1" 2>/dev/null || true
  for _ in $(seq 100); do
    if ! is_server "$1" "$2"; then return 0; fi
    sleep 0.1
  done
  kill -9 "$1" 2>/dev/null || true
  sleep 0.5
}
