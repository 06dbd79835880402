# Shared by the benchmarks here: PostgreSQL and Isochrone side by side, both with fsync on, in a temporary directory.
# Sourced, not run. Sets: work, pg and iso (process ids); port 5541 is PostgreSQL's, 5542 Isochrone's.
BIN=${BIN:-${CARGO_TARGET_DIR:-target}/release/isochrone}
PG=$(dirname "$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -1)")
[ -x "$PG/initdb" ] || { echo "PostgreSQL's server is not installed" >&2; exit 2; }
work=$(mktemp -d)
as() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
[ "$(id -u)" = 0 ] && chown postgres "$work"
cleanup() {
  as "$PG/pg_ctl" -D "$work/pg" -m immediate -w stop >/dev/null 2>&1 || true
  [ -n "${iso:-}" ] && kill "$iso" 2>/dev/null && wait "$iso" || true
  rm -rf "$work"
}
trap cleanup EXIT
case $BIN in /*) ;; *) BIN=$PWD/$BIN ;; esac
cd "$work"

as "$PG/initdb" -D "$work/pg" -U root -A trust -E UTF8 --locale=C >/dev/null
as tee -a "$work/pg/postgresql.conf" >/dev/null <<CONF
listen_addresses = '127.0.0.1'
unix_socket_directories = '$work'
port = 5541
shared_buffers = 1GB
max_wal_size = 4GB
CONF
as "$PG/pg_ctl" -D "$work/pg" -l "$work/pg.log" -w start >/dev/null
pg=$(head -1 "$work/pg/postmaster.pid")
mkdir "$work/iso"
ISOCHRONE_LOG=warn "$BIN" start --data "$work/iso/data" --sql 127.0.0.1:5542 --http 127.0.0.1:8542 \
  --cluster 127.0.0.1:7542 >"$work/iso.log" 2>&1 &
iso=$!
for _ in $(seq 500); do grep -q ^ready "$work/iso.log" && break; sleep 0.02; done

export PGHOST=127.0.0.1 PGUSER=root
use() { case $1 in pg) export PGPORT=5541 PGDATABASE=postgres ;; iso) export PGPORT=5542 PGDATABASE=isochrone ;; esac; }
cpu_us() { # of a process, its children, and its reaped children
  local pids; pids="$1 $(pgrep -P "$1" | tr '\n' ' ')"
  for p in $pids; do cat "/proc/$p/stat" 2>/dev/null || true; done |
    awk -v top="$1" '{ s += $14 + $15; if ($1 == top) s += $16 + $17 } END { print s * 10000 }'
}
