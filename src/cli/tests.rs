//! That the command line is understood as documented.

use clap::error::ErrorKind;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_tree_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn documented_commands_are_accepted() {
    for line in [
        "flowmesh serve --grpc-addr :50051 --shards 2 --auto-create",
        "flowmesh serve --auto-create=false -c x.toml --check",
        "flowmesh dev",
        "flowmesh stream append logs --file /var/log/dpkg.log",
        "flowmesh stream append logs a b -k key -H n=v -p 1 -o json",
        "flowmesh stream append logs - --json-lines --retry --batch 100",
        "flowmesh stream read logs --from earliest --follow",
        "flowmesh stream read logs --from 17 -n 5 -o table -p 0 -p 1",
        "flowmesh stream read logs --filter key=a --filter key^=us --filter header:n=v --filter json:$.a.b=3",
        "flowmesh stream inspect logs --offset 17",
        "flowmesh stream inspect logs --partition 2 --offset 17 --around 3 -o json",
        "flowmesh stream status logs -o json",
        "flowmesh stream consume logs orders --group g --commit none --max 5 --from latest -o json",
        "flowmesh stream consume logs -g g --member-name m --instance-id i --commit interval --commit-interval 1s",
        "flowmesh group list --prefix b",
        "flowmesh group describe g --time-lag -o json",
        "flowmesh group watch g --every 1s -n 3",
        "flowmesh group offsets g logs:0,4-7 orders --delete",
        "flowmesh group reset g logs --to-time 1700000000000 --dry-run",
        "flowmesh group reset g --shift -5 --yes",
        "flowmesh group remove-member g --instance-id i",
        "flowmesh group delete g --force --yes",
        "flowmesh kv set s k v --if-value old --expires-at +10m",
        "flowmesh kv do shop HSET h a 1 b 2",
        "flowmesh kv do shop LRANGE l 0 -1",
        "flowmesh kv do shop -o json ZADD z -1.5 a",
        "flowmesh kv do --atomic shop -",
        "flowmesh kv type shop k -o json",
        "flowmesh kv count shop",
        "flowmesh kv random shop",
        "flowmesh kv clear shop --yes",
        "flowmesh kv export shop --prefix user: -",
        "flowmesh kv import shop shop.jsonl",
        "flowmesh resources create group g --set session_timeout_ms=10s --set assignor=range",
        "flowmesh queue enqueue mail x --priority 5 --delay 10s --max-attempts 2",
        "flowmesh queue enqueue mail x --key k --key-window 1h --group g --ttl 1d --after 3 --after 4 --after-any-end",
        "flowmesh queue enqueue mail x --run-at +10m --backoff exponential:1s:5m:20% --wait 10s",
        "flowmesh queue reserve mail -n 10 --wait 5s --visibility 1m",
        "flowmesh queue ack mail 1:2 3:4",
        "flowmesh queue nack mail 1:2 --delay 1s --error why",
        "flowmesh queue extend mail 1:2 --visibility 1m",
        "flowmesh queue status mail",
        "flowmesh queue ack mail 1:2 --result 42",
        "flowmesh queue nack mail 1:2 --final --error why",
        "flowmesh queue nack mail 1:2 --release",
        "flowmesh queue progress mail 1:2 half",
        "flowmesh queue job mail 7 -o json",
        "flowmesh queue result mail 7 --wait 5m",
        "flowmesh queue list mail --phase dead --error timeout --since -1h -n 10",
        "flowmesh queue list mail --header to=ada --group g --before 2026-11-21 -o json",
        "flowmesh queue peek mail -n 10",
        "flowmesh queue cancel mail 1 2",
        "flowmesh queue change mail 7 --priority 9 --run-at +0s",
        "flowmesh queue redrive mail 1 2",
        "flowmesh queue redrive mail --error timeout --per-second 10 --delay 1m",
        "flowmesh queue redrive mail --all --to later --per-second 10",
        "flowmesh queue replay mail --from -1h --to-time @5 --into play",
        "flowmesh queue replay mail 1 2 --phase dead --into play",
        "flowmesh queue outbox mail -o json",
        "flowmesh queue purge mail --all --done --yes",
        "flowmesh queue pause mail",
        "flowmesh queue resume mail",
        "flowmesh queue watch mail --every 1s -n 3",
        "flowmesh queue work mail --exec ./handler.sh -c 4 --until-empty --job-timeout 5m",
        "flowmesh queue work mail --exec true --worker acme/prod/w1 --label zone=a --session 10s",
        "flowmesh queue work mail --exec true --worker any:text --no-register",
        "flowmesh worker list --state alive --state dead --queue mail --prefix w -o json",
        "flowmesh worker watch --every 1s -n 3",
        "flowmesh worker show w1 -n 10",
        "flowmesh worker stop w1",
        "flowmesh worker forget w1 -o json",
        "flowmesh schedule create mail report x --cron @daily --time-zone Europe/Berlin --missed all --end +30d",
        "flowmesh schedule create mail once --file - --at 2026-11-21T12:00:00Z --paused -H a=b -p 3 -d 5s",
        "flowmesh schedule create mail tidy x --cron @hourly --group g --ttl 1h --backoff fixed:1m",
        "flowmesh schedule update mail report y --cron @weekly --time-zone UTC --no-end --missed skip",
        "flowmesh schedule update mail report --at +1h --end +2h -p 3 -H a=b --ttl 1h",
        "flowmesh schedule trigger mail report",
        "flowmesh schedule list",
        "flowmesh schedule list mail -o json",
        "flowmesh schedule describe mail report",
        "flowmesh schedule pause mail report",
        "flowmesh schedule resume mail report",
        "flowmesh schedule next mail report -n 3",
        "flowmesh schedule run-now mail report",
        "flowmesh schedule delete mail report --yes",
        "flowmesh kv set sessions user:1 x --ttl 60s --if-absent",
        "flowmesh kv set sessions user:1 --file - --keep-ttl --if-version 7",
        "flowmesh kv get sessions user:1",
        "flowmesh kv delete sessions a b",
        "flowmesh kv exists sessions a",
        "flowmesh kv scan sessions --prefix user: --limit 10 --keys-only",
        "flowmesh resources list",
        "flowmesh resources list queue --prefix m -o json",
        "flowmesh resources describe stream logs",
        "flowmesh resources create stream logs --partitions 4 --set durability=never",
        "flowmesh resources update default/default/queue/mail --set max_attempts=5",
        "flowmesh resources delete kv sessions --yes",
        "flowmesh topology stream logs -a localhost:50051",
        "flowmesh bench load --mix get=9,set=1 --addr :50051",
        "flowmesh bench list",
        "flowmesh completions bash",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, kind) in [
        ("flowmesh", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
        ("flowmesh steam", ErrorKind::InvalidSubcommand),
        ("flowmesh worker show", ErrorKind::MissingRequiredArgument),
        ("flowmesh worker list --state gone", ErrorKind::InvalidValue),
        ("flowmesh worker show w1 -n 0", ErrorKind::ValueValidation),
        ("flowmesh queue work mail -e x --label nothing", ErrorKind::ValueValidation),
        ("flowmesh queue work mail -e x --label a=b --no-register", ErrorKind::ArgumentConflict),
        ("flowmesh stream append", ErrorKind::MissingRequiredArgument),
        ("flowmesh stream append logs x --file y", ErrorKind::ArgumentConflict),
        ("flowmesh stream append logs --batch 0", ErrorKind::ValueValidation),
        ("flowmesh stream append logs -H novalue", ErrorKind::ValueValidation),
        ("flowmesh stream read logs --from first", ErrorKind::ValueValidation),
        ("flowmesh stream read logs --output xml", ErrorKind::InvalidValue),
        ("flowmesh stream read logs --filter value=3", ErrorKind::ValueValidation),
        ("flowmesh stream read logs --filter json:$.*=3", ErrorKind::ValueValidation),
        ("flowmesh stream inspect logs", ErrorKind::MissingRequiredArgument),
        ("flowmesh stream inspect logs --offset 1 --around 5000", ErrorKind::ValueValidation),
        ("flowmesh queue enqueue mail x --priority 256", ErrorKind::ValueValidation),
        ("flowmesh queue enqueue mail x --delay tomorrow", ErrorKind::ValueValidation),
        ("flowmesh queue enqueue mail x --run-at +1m --delay 1m", ErrorKind::ArgumentConflict),
        ("flowmesh queue enqueue mail x --key-window 1h", ErrorKind::MissingRequiredArgument),
        ("flowmesh queue enqueue mail x --backoff slow:1s", ErrorKind::ValueValidation),
        ("flowmesh queue nack mail 1:2 --final --release", ErrorKind::ArgumentConflict),
        ("flowmesh queue list mail --phase gone", ErrorKind::InvalidValue),
        ("flowmesh queue change mail 7", ErrorKind::MissingRequiredArgument),
        ("flowmesh queue redrive mail 7 --all", ErrorKind::ArgumentConflict),
        ("flowmesh queue purge mail --all --group g", ErrorKind::ArgumentConflict),
        ("flowmesh queue ack mail 17", ErrorKind::ValueValidation),
        ("flowmesh queue work mail", ErrorKind::MissingRequiredArgument),
        ("flowmesh queue work mail -e x -c 0", ErrorKind::ValueValidation),
        ("flowmesh kv set s k", ErrorKind::MissingRequiredArgument),
        ("flowmesh kv set s k v --if-absent --if-present", ErrorKind::ArgumentConflict),
        ("flowmesh kv set s k v --ttl 1s --keep-ttl", ErrorKind::ArgumentConflict),
        ("flowmesh serve --grpc-adr :1", ErrorKind::UnknownArgument),
        ("flowmesh serve --shards 1 --shards 2", ErrorKind::ArgumentConflict),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(error.kind(), kind, "{line}: {error}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn flags_may_follow_values_and_negative_numbers_are_values() {
    let parsed = format!("{:?}", parse("flowmesh queue enqueue mail x -5 --priority 7").unwrap());
    assert!(parsed.contains(r#"payloads: ["x", "-5"]"#) && parsed.contains("priority: 7"), "{parsed}");
    let parsed = format!("{:?}", parse("flowmesh stream append logs -k a b -- --flag -k").unwrap());
    assert!(parsed.contains(r#"values: ["b", "--flag", "-k"]"#), "{parsed}");
    let parsed = format!("{:?}", parse("flowmesh kv set s k -1 --ttl 5s").unwrap());
    assert!(parsed.contains(r#"value: Some("-1")"#) && parsed.contains("ttl: Some(5s)"), "{parsed}");
}

#[test]
fn every_setting_has_a_flag_in_the_help_of_both() {
    for name in ["serve", "dev"] {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut(name).unwrap().render_long_help().to_string();
        for setting in flowmesh::config::SETTINGS {
            assert!(
                help.contains(&format!("--{}", setting.flag())),
                "--{} is not in {name} --help",
                setting.flag()
            );
            assert!(help.contains(&setting.env()), "{} is not in {name} --help", setting.env());
        }
    }
}
