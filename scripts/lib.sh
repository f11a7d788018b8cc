# What `up`, `down` and `test` share. Sourced by bash scripts that have set `root` to the repository.
set -euo pipefail

# Everything that is fetched or built outside the repository lives here.
cache="${ORLOP_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/orlop}"
tools="$cache/tools"
export PATH="$tools:$PATH"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || die "run this as root: containers, namespaces and nftables need it"; }

# need_packages NAME...: installs the Debian packages that are not there yet.
need_packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return
  say "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_cargo() { command -v cargo >/dev/null || die "Rust is missing: install it with rustup (https://rustup.rs)"; }

# What the cluster itself needs from the host, and what building it needs.
host_packages=(nftables iproute2 conntrack busybox-static libseccomp2 python3 curl ca-certificates util-linux procps)
build_packages=(gcc libc6-dev libseccomp-dev pkg-config)
