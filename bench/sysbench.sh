#!/usr/bin/env bash
# sysbench's oltp_* scripts, unmodified, against Isochrone and PostgreSQL, cell by cell in one run on this machine, both
# with fsync on.
#
#   cargo build --release && bench/sysbench.sh           (about 4 minutes)
#   SECS=2 THREADS=8 bench/sysbench.sh                   a quick look
#
# Prints, per cell: transactions per second, errors per second that sysbench retried, and server CPU per transaction.
# Load generator and servers share the cores. Needs sysbench and PostgreSQL's server. Removes everything it started.
set -euo pipefail
SECS=${SECS:-5} THREADS=${THREADS:-4} ROWS=${ROWS:-100000}
SCRIPTS=${SCRIPTS:-point_select read_only update_index update_non_index insert delete write_only read_write}
. "$(dirname "$0")/lib.sh"

sb() { # script, then the rest
  local script=$1; shift
  sysbench "oltp_$script" --db-driver=pgsql --pgsql-host=127.0.0.1 --pgsql-port="$PGPORT" --pgsql-user=root \
    --pgsql-db="$PGDATABASE" --tables=1 --table-size="$ROWS" --threads="$THREADS" --time="$SECS" "$@"
}
cell() { # server, script
  local pid before after out
  use "$1"; pid=$([ "$1" = pg ] && echo "$pg" || echo "$iso")
  sb "$2" prepare >/dev/null
  before=$(cpu_us "$pid"); out=$(sb "$2" run 2>&1) || { echo "$out" >&2; exit 1; }
  sleep 0.3 # the last of PostgreSQL's backends is counted when it was reaped
  after=$(cpu_us "$pid")
  sb "$2" cleanup >/dev/null
  awk -v c=$((after - before)) '
    /transactions:/ { n = $2; gsub(/[^0-9.]/, "", $3); t = $3 }
    /ignored errors:/ { gsub(/[^0-9.]/, "", $4); e = $4 }
    END { printf "%.0f %s %.0f\n", t, e, n ? c / n : 0 }' <<<"$out"
}
echo "| oltp_ | threads | PostgreSQL tx/s | Isochrone tx/s | ratio | PostgreSQL us/tx | Isochrone us/tx | retried/s |"
echo "|---|---|---|---|---|---|---|---|"
for s in $SCRIPTS; do
  read -r pt pe pc < <(cell pg "$s")
  read -r it ie ic < <(cell iso "$s")
  awk -v n="$s" -v c="$THREADS" -v pt="$pt" -v it="$it" -v pc="$pc" -v ic="$ic" -v e="$pe/$ie" \
    'BEGIN { printf "| %s | %s | %s | %s | %.2f | %s | %s | %s |\n", n, c, pt, it, pt ? it / pt : 0, pc, ic, e }'
done
