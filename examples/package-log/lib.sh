# Shared by the scripts here. They need FLOWMESH (the program) and FLOWMESH_ADDR (the server) in the environment.

# Runs a flowmesh command again as long as the server is away (exit code 4), for a minute. For what may be done twice.
again() {
    local deadline=$((SECONDS + 60)) code problem
    problem=$(mktemp)
    while :; do
        code=0
        "$FLOWMESH" "$@" 2>"$problem" || code=$?
        if [ "$code" -ne 4 ] || [ "$SECONDS" -ge "$deadline" ]; then
            cat "$problem" >&2
            rm -f "$problem"
            return "$code"
        fi
        sleep 0.1
    done
}

# One number out of a line of JSON: number NAME < json
number() {
    sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"
}
