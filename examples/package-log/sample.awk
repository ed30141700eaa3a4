# awk -f sample.awk: writes a package log of about 5 000 lines, the same every time, for machines that have none.
function random(n) { # Park and Miller's generator: the same in every awk
    seed = (seed * 16807) % 2147483647
    return seed % n
}
function stamp() {
    clock += 1 + random(3)
    return sprintf("2025-06-%02d %02d:%02d:%02d", 1 + int(clock / 86400) % 30, int(clock / 3600) % 24, int(clock / 60) % 60, clock % 60)
}
function put(words) { print stamp() " " words }
BEGIN {
    seed = 20250624
    count = split("libc6 zlib1g openssl curl git perl-base python3 vim bash tar gzip sed grep gawk make gcc g++ binutils", names, " ")
    for (turn = 0; turn < 680; turn++) {
        name = names[1 + random(count)] "-" random(90) ":amd64"
        old = "1." random(9) "-" random(9)
        new = "2." random(9) "-" random(9)
        kind = random(20)
        if (turn % 12 == 0) put("startup archives unpack")
        if (kind < 14) {
            put("install " name " <none> " new)
            put("status half-installed " name " " new)
        } else if (kind < 18) {
            put("upgrade " name " " old " " new)
            put("status half-configured " name " " old)
            put("status unpacked " name " " old)
            put("status half-installed " name " " old)
        } else {
            put("status installed " name " " old)
            put("remove " name " " old " <none>")
            put("status half-configured " name " " old)
            put("status half-installed " name " " old)
            put("status config-files " name " " old)
            continue
        }
        put("status unpacked " name " " new)
        if (turn % 12 == 0) put("startup packages configure")
        put("configure " name " " new " <none>")
        put("status unpacked " name " " new)
        put("status half-configured " name " " new)
        put("status installed " name " " new)
        if (random(9) == 0) put("trigproc man-db:amd64 2.11.2-2 <none>")
    }
}
