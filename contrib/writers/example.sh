#!/bin/sh
# A writer in shell, for an application that `shopctl` pauses and resumes. It needs socat. Run it as root, as a service with
# Restart=always: when the agent hangs up, it ends. The requests are explained in docs/write-a-writer.md.
socket=${QUIESCE_SOCKET:-/run/quiesce/writers.sock}
[ "$1" = serve ] || exec socat "UNIX-CONNECT:$socket" "EXEC:$0 serve" # from there on it reads requests and prints answers

number() { rest=${line#*\""$1"\":}; echo "${rest%%[,\}]*}"; }
answer() { echo "{\"id\":$(number id),\"outcome\":\"$1\"}"; }
hold() { # our own dead-man goes first; once it acts it cannot be stopped, and ends with 0
    (sleep "$(((window_ms + 999) / 1000))"; trap '' USR1; shopctl resume; exit 0) </dev/null >/dev/null 2>&1 &
    dead_man=$!
    shopctl pause >&2
}
let_go() { # fails if nothing is held, any more
    [ "$dead_man" ] || return 1
    kill -USR1 "$dead_man" 2>/dev/null # no signal that this shell traps: a process just forked would lose it
    wait "$dead_man" 2>/dev/null; ended=$? dead_man=''
    [ "$ended" -ne 0 ] && shopctl resume >&2
}
trap stopped=yes TERM # as its service is; socat, which is stopped with it, ends the input

echo '{"protocol":1,"writer":"shop","application":"shop","level":"front-end","paths":["/srv/shop"]}'
while read -r line; do
    case $line in
        *'"do":"prepare"'*) window_ms=$(number window_ms) && answer stable ;;
        *'"do":"hold"'*) if hold; then answer stable; else let_go; answer retryable; fi ;;
        *'"do":"release"'*) if let_go; then answer stable; else answer inconsistent; fi ;;
        *'"do":"abort"'*) let_go; answer stable ;;
        *'"do":'*) answer stable ;; # identify and post-checkpoint: there is nothing to be done
    esac
done
let_go
[ "$stopped" ] && echo '{"protocol":1,"leave":"shop"}' | socat - "UNIX-CONNECT:$socket" >&2
