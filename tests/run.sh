#!/usr/bin/env bash
# The tests: set-up, then every test in one process, then every test on 3 ranks. Arguments go to pytest.
#
#   tests/run.sh                              all
#   tests/run.sh tests/tree -k angle          some
#   HPCHESS_TEST_RANKS=5 tests/run.sh         another number of ranks
#   HPCHESS_TEST_LIMIT=600 tests/run.sh       seconds for each of the two runs (default 1800)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# under mpiexec: rank 0 reports, the others write to files, shown when a rank is lost without a report
if [ "${1:-}" = --rank ]; then
  logs=$2; shift 2
  rank=${OMPI_COMM_WORLD_RANK:-${PMIX_RANK:-${PMI_RANK:-0}}}
  options=(--color=no --with-mpi --basetemp="$logs/tmp-$rank")
  if [ "$rank" = 0 ]; then
    python -m pytest "${options[@]}" "$@" 2>&1 | cat  # a pipe: mpiexec gives rank 0 a pseudo-terminal, and pytest would draw on it
    exit
  fi
  exec python -m pytest "${options[@]}" -p no:cacheprovider "$@" >"$logs/rank-$rank.log" 2>&1
fi

source jobs/setup.sh || exit 1
ranks=${HPCHESS_TEST_RANKS:-3} limit=${HPCHESS_TEST_LIMIT:-1800}
logs=$(mktemp -d) || exit 1
trap 'rm -rf "$logs"' EXIT

timeout -k 15 "$limit" python -m pytest --color=no --basetemp="$logs/tmp-one" "$@" </dev/null 2>&1 | tee "$logs/one.log"
one=${PIPESTATUS[0]}
[ "$one" != 124 ] || echo "stopped after $limit s" | tee -a "$logs/one.log"

printf '\nOn %s ranks:\n' "$ranks"
timeout -k 15 "$limit" mpiexec -n "$ranks" bash tests/run.sh --rank "$logs" "$@" </dev/null 2>&1 | tee "$logs/rank-0.log"
many=${PIPESTATUS[0]}
[ "$many" != 124 ] || echo "stopped after $limit s" | tee -a "$logs/rank-0.log"

# on failure the report's last line stands last, after what the launcher added
summary='^=+ .*(passed|failed|error|skipped|deselected|no tests ran).* =+$'
if [ "$one" != 0 ] && [ "$one" != 5 ]; then
  printf '\nThe run as one process did not pass (exit status %s):\n' "$one"
  grep -aE '^(FAILED|ERROR) ' "$logs/one.log"
  grep -aE "$summary" "$logs/one.log" | tail -n 1
fi
if [ "$many" != 0 ] && [ "$many" != 5 ]; then
  if ! grep -aqE "$summary" "$logs/rank-0.log"; then
    for log in "$logs"/rank-[1-9]*.log; do
      [ -e "$log" ] || continue
      printf '\nThe end of what %s wrote:\n' "$(basename "$log" .log)"
      tail -n 60 "$log"
    done
  fi
  printf '\nThe run on %s ranks did not pass (exit status %s):\n' "$ranks" "$many"
  grep -aE '^(FAILED|ERROR) ' "$logs/rank-0.log"
  grep -aE "$summary" "$logs/rank-0.log" | tail -n 1
fi
# 5 is "no test was selected": right for a run whose arguments select tests of the other kind
[ "$one" = 0 ] || [ "$one" = 5 ] || exit 1
[ "$many" = 0 ] || [ "$many" = 5 ] || exit 1
[ "$one$many" != 55 ] || exit 5
