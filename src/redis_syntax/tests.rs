use super::*;
use flowmesh_proto::v1::operation_outcome::Result as Came;
use v1::end::End;
use v1::member_bound::Bound as Lex;
use v1::operation::Condition;

fn parsed(line: &str) -> Parsed {
    parse(&words::split(line.as_bytes()).unwrap())
}

fn action(line: &str) -> Action {
    let request = parsed(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let [operation] = request.operations.as_slice() else { panic!("{line}: {request:?}") };
    operation.action.clone().unwrap()
}

fn problem(line: &str) -> String {
    parsed(line).expect_err(line).to_string()
}

fn came(result: Came) -> v1::OperationOutcome {
    v1::OperationOutcome { version: 1, error: None, result: Some(result) }
}

fn refused(reason: &str) -> v1::OperationOutcome {
    let error = v1::Error { code: 9, reason: reason.to_owned(), ..Default::default() };
    v1::OperationOutcome { error: Some(error), ..Default::default() }
}

fn lines(line: &str, outcomes: Vec<v1::OperationOutcome>) -> String {
    let mut out = Vec::new();
    parsed(line).unwrap().answer(outcomes, 1_000).unwrap().write_lines(&mut out);
    String::from_utf8(out).unwrap()
}

fn members(names: &[&'static str]) -> Came {
    Came::Members(v1::Members {
        members: names.iter().map(|name| Bytes::from_static(name.as_bytes())).collect(),
    })
}

fn scored(members: &[(&'static str, f64)]) -> v1::Scored {
    let one = |(member, score): &(&'static str, f64)| v1::ScoredMember {
        member: Bytes::from_static(member.as_bytes()),
        score: *score,
    };
    v1::Scored { members: members.iter().map(one).collect() }
}

/// The rows of `docs/redis.md`: group, command, what there is for it.
fn documented() -> Vec<(String, String, String)> {
    let page = include_str!("../../docs/redis.md");
    let mut group = String::new();
    let mut rows = Vec::new();
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.to_lowercase().clone_into(&mut group);
        }
        let cells: Vec<&str> = line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        if let [command, has] = cells.as_slice()
            && let Some(command) = command.strip_prefix('`').and_then(|command| command.strip_suffix('`'))
        {
            rows.push((group.clone(), command.to_owned(), (*has).to_owned()));
        }
    }
    rows
}

#[test]
fn the_documentation_lists_the_commands_there_are_and_those_there_are_not() {
    let rows = documented();
    let mut wanted = Vec::new();
    for group in Group::ALL {
        for command in group.commands() {
            wanted.push((group.as_str().to_owned(), command.name.to_owned(), true));
        }
        for name in REFUSED.iter().filter(|refused| refused.group == group).flat_map(|refused| refused.names)
        {
            wanted.push((group.as_str().to_owned(), (*name).to_owned(), false));
        }
    }
    wanted.sort();
    let mut found: Vec<_> = rows
        .iter()
        .map(|(group, command, has)| (group.clone(), command.clone(), !has.starts_with("no: ")))
        .collect();
    found.sort();
    assert_eq!(found, wanted);
    for (_, command, has) in &rows {
        if let Some(refused) = REFUSED.iter().find(|refused| refused.names.contains(&command.as_str())) {
            assert_eq!(has, &format!("no: {}", refused.instead));
        } else {
            let example = has.split('`').nth(1).unwrap_or_else(|| panic!("{command}: {has}"));
            parsed(example).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}

#[test]
fn every_command_reads_its_example_and_says_its_syntax_where_it_is_wrong() {
    let mut count = 0;
    for command in Group::ALL.iter().flat_map(|group| group.commands()) {
        let example = command.example;
        let (name, _) = example.split_once(' ').unwrap_or((example, ""));
        assert_eq!(name, command.name);
        assert!(parsed(example).is_ok(), "{example}");
        let lower = example.replacen(name, &name.to_lowercase(), 1);
        assert!(parsed(&lower).is_ok(), "{lower}");
        if !command.syntax.is_empty() {
            let error = problem(command.name);
            assert!(error.contains("is missing") && error.ends_with(command.syntax), "{error}");
        }
        count += 1;
    }
    assert!(count > 110, "{count}");
    assert!(problem("RANDOMKEY x").contains("it takes no arguments"));
}

#[test]
fn what_has_no_equivalent_is_refused_with_what_to_use_instead() {
    for refused in REFUSED {
        for name in refused.names {
            let error = problem(&format!("{} a b c", name.to_lowercase()));
            assert_eq!(error, format!("{name}: has no equivalent. {}", refused.instead));
        }
        assert!(refused.instead.ends_with('.'), "{}", refused.instead);
    }
    assert!(problem("dbsize").contains("kv count"));
    assert!(problem("FROB x").contains("FROB: is no command here"));
    assert!(parse(&[]).unwrap_err().to_string().contains("is missing"));
}

#[test]
fn a_set_has_conditions_and_ends() {
    use v1::bytes_set::Ttl;
    let operation = |line: &str| parsed(line).unwrap().operations.pop().unwrap();
    let set = |line: &str| match operation(line).action.unwrap() {
        Action::Set(set) => set,
        other => panic!("{other:?}"),
    };
    assert_eq!(set("SET k v").ttl, None);
    assert_eq!(set("set k v ex 10 nx").ttl, Some(Ttl::TtlMs(10_000)));
    assert_eq!(set("SET k v PXAT 77").ttl, Some(Ttl::ExpiresAtMs(77)));
    assert_eq!(set("SET k v KEEPTTL").ttl, Some(Ttl::KeepTtl(true)));
    assert_eq!(operation("SET k v ex 10 nx").condition, Some(Condition::IfAbsent(true)));
    assert_eq!(operation("SET k v XX").condition, Some(Condition::IfPresent(true)));
    assert!(set("SET k v GET").with_old);
    assert_eq!(parsed("SET k v NX GET").unwrap().operations.len(), 2);
    assert_eq!(set("PSETEX k 5 v").ttl, Some(Ttl::TtlMs(5)));
    for (line, part) in [
        ("SET k v NX XX", "`XX` contradicts"),
        ("SET k v EX 1 KEEPTTL", "`KEEPTTL` contradicts"),
        ("SET k v EX", "seconds is missing"),
        ("SET k v EX ten", "seconds is `ten`; allowed: a 64-bit integer"),
        ("SET k v EX 0", "seconds must be above 0"),
        ("SET k v EX 9223372036854775807", "beyond the end of time"),
        ("SET k v SOON", "does not know `SOON`"),
        ("INCRBY k 1.5", "increment is `1.5`; allowed: a 64-bit integer"),
        ("INCRBY k 9223372036854775808", "allowed: a 64-bit integer"),
        ("DECRBY k -9223372036854775808", "cannot be taken"),
        ("INCRBYFLOAT k nan", "increment is `nan`; allowed: a number"),
        ("MSET a 1 b", "value is missing"),
        ("GETEX k EX -1", "must be above 0"),
        ("COPY a b DB 3", "no numbered databases"),
    ] {
        assert!(problem(line).contains(part), "{line}: {}", problem(line));
    }
}

#[test]
fn an_end_that_is_over_is_a_time_long_past() {
    let end = |line: &str| match action(line) {
        Action::Expire(expire) => (expire.end.unwrap().end.unwrap(), expire.only()),
        other => panic!("{other:?}"),
    };
    assert_eq!(end("EXPIRE k 10 NX"), (End::InMs(10_000), v1::EndIf::None));
    assert_eq!(end("PEXPIRE k -5 GT"), (End::AtMs(1), v1::EndIf::Later));
    assert_eq!(end("EXPIREAT k 0"), (End::AtMs(1), v1::EndIf::Always));
    assert_eq!(end("PERSIST k").0, End::Never(true));
    assert!(problem("EXPIRE k 10 NX XX").contains("`XX` contradicts"));
    let Action::HashExpire(expire) = action("HPEXPIRE h 10 LT FIELDS 2 a b") else { panic!() };
    assert_eq!((expire.fields.len(), expire.only()), (2, v1::EndIf::Earlier));
    assert!(problem("HEXPIRE h 10 a").contains("FIELDS is missing"));
    assert!(problem("HEXPIRE h 10 FIELDS 2 a").contains("2 of numfields were announced, 1 are there"));
    assert!(problem("HEXPIRE h -1 FIELDS 1 a").contains("seconds is -1; allowed: 0 or more"));
    let changed = |change: v1::Change| came(Came::Changes(v1::Changes { changes: vec![change.into()] }));
    assert_eq!(lines("HEXPIRE h 0 FIELDS 1 a", vec![changed(v1::Change::Done)]), "2\n");
    assert_eq!(lines("HEXPIRE h 9 FIELDS 1 a", vec![changed(v1::Change::Done)]), "1\n");
    assert_eq!(lines("HEXPIRE h 9 FIELDS 1 a", vec![changed(v1::Change::Absent)]), "-2\n");
    assert_eq!(lines("HPERSIST h FIELDS 1 a", vec![changed(v1::Change::Kept)]), "-1\n");
}

#[test]
fn ranges_of_sorted_sets_come_in_all_their_forms() {
    use v1::score_bound::Bound as Score;
    use v1::sorted_part::Part;
    let range = |line: &str| match action(line) {
        Action::SortedRange(range) => range,
        other => panic!("{other:?}"),
    };
    let scores = |line: &str| match range(line).part.unwrap().part.unwrap() {
        Part::Scores(scores) => (scores.min.unwrap().bound.unwrap(), scores.max.unwrap().bound.unwrap()),
        other => panic!("{other:?}"),
    };
    let whole = (Score::Excluded(1.0), Score::Included(f64::INFINITY));
    for line in [
        "ZRANGE z (1 +inf BYSCORE LIMIT 0 10 WITHSCORES",
        "ZRANGE z inf (1 BYSCORE REV",
        "ZRANGEBYSCORE z (1 +inf",
        "ZREVRANGEBYSCORE z +Inf (1 LIMIT 2 -1",
    ] {
        assert_eq!(scores(line), whole, "{line}");
    }
    let limited = range("ZRANGE z 0 1 BYSCORE LIMIT 2 3");
    assert_eq!((limited.skip, limited.limit, limited.reverse), (2, Some(3), false));
    assert_eq!(range("ZREVRANGEBYSCORE z 1 0 LIMIT 2 -1").limit, None);
    assert_eq!(range("ZRANGEBYSCORE z 0 1 LIMIT -1 5").limit, Some(0), "an offset below 0 is nothing");
    assert!(range("ZREVRANGE z 0 -1").reverse);
    assert_eq!(range("ZRANGESTORE {t}b {t}a 0 1").into, Some("{t}b".into()));

    let Some(Part::Members(lex)) = range("ZREVRANGEBYLEX z + [a").part.unwrap().part else { panic!() };
    assert_eq!(lex.min.unwrap().bound, Some(Lex::Included("a".into())));
    assert_eq!(lex.max.unwrap().bound, None);
    let Some(Part::Members(lex)) = range("ZRANGEBYLEX z + -").part.unwrap().part else { panic!() };
    assert_eq!(lex.max.unwrap().bound, Some(Lex::Excluded(Bytes::new())), "nothing lies there");
    for (line, part) in [
        ("ZRANGE z 0 1 LIMIT 0 1", "takes LIMIT only with BYSCORE or BYLEX"),
        ("ZRANGE z - + BYLEX WITHSCORES", "WITHSCORES not with BYLEX"),
        ("ZRANGE z a b BYLEX", "min is `a`; allowed: -, +, [MEMBER or (MEMBER"),
        ("ZRANGE z 0.5 1", "start is `0.5`; allowed: a 64-bit integer"),
        ("ZRANGEBYSCORE z nan 1", "min is `nan`"),
        ("ZREVRANGE z 0 1 LIMIT 0 1", "does not know `LIMIT`"),
        ("ZADD z NX GT 1 a", "at most one of NX, GT and LT"),
        ("ZADD z nan a", "score is `nan`; allowed: a number, inf, -inf"),
        ("ZADD z INCR 1 a 2 b", "one score and member with INCR"),
        ("ZADD z 1", "member is missing"),
        ("ZUNION 2 a", "2 of numkeys were announced, 1 are there"),
        ("ZUNION 0 a", "numkeys is 0; allowed: 1 or more"),
        ("ZDIFF 1 a WEIGHTS 1", "does not know `WEIGHTS`"),
        ("ZMPOP 2 a b MIN", "looks at one key here, not at 2"),
        ("ZINTER 1 a AGGREGATE AVG", "AGGREGATE takes SUM, MIN or MAX"),
        ("LPOS l a RANK 0", "rank is 0; allowed: 1 and up"),
        ("LPOP l -1", "count is -1; allowed: 0 or more"),
        ("LMOVE a b UP DOWN", "does not know `UP`"),
        ("HSCAN h 17", "cursor is `17`; allowed: 0 to begin"),
    ] {
        assert!(problem(line).contains(part), "{line}: {}", problem(line));
    }
}

#[test]
fn answers_are_those_of_redis() {
    let value = |text: Option<&'static str>| {
        Came::Value(v1::MaybeValue { value: text.map(|text| Bytes::from_static(text.as_bytes())) })
    };
    assert_eq!(lines("GET k", vec![came(value(Some("v")))]), "v\n");
    assert_eq!(lines("GET k", vec![came(value(None))]), "\n");
    assert_eq!(lines("SET k v", vec![came(Came::Done(true))]), "OK\n");
    assert_eq!(lines("SET k v NX", vec![refused("CONDITION_FAILED")]), "\n");
    assert_eq!(lines("SETNX k v", vec![refused("CONDITION_FAILED")]), "0\n");
    assert_eq!(lines("SETNX k v", vec![came(Came::Done(true))]), "1\n");
    let outcomes = vec![came(value(Some("old"))), refused("CONDITION_FAILED")];
    assert_eq!(lines("SET k v NX GET", outcomes), "old\n");
    let outcomes = vec![came(value(Some("1"))), refused("WRONG_TYPE"), came(value(None))];
    assert_eq!(lines("MGET a h n", outcomes), "1\n\n\n");
    assert_eq!(lines("DEL a b c", [true, false, true].map(|flag| came(Came::Flag(flag))).into()), "2\n");
    let error = parsed("GET h").unwrap().answer(vec![refused("WRONG_TYPE")], 0).unwrap_err();
    assert_eq!(error.reason, "WRONG_TYPE");

    let info = |found, end| {
        let r#type = v1::KeyType::SortedSet.into();
        came(Came::Info(v1::KeyInfo { found, r#type, expires_at_ms: end, ..Default::default() }))
    };
    assert_eq!(lines("TYPE z", vec![info(true, None)]), "zset\n");
    assert_eq!(lines("TYPE z", vec![info(false, None)]), "none\n");
    assert_eq!(lines("TTL z", vec![info(true, Some(11_499))]), "10\n");
    assert_eq!(lines("PTTL z", vec![info(true, Some(11_499))]), "10499\n");
    assert_eq!(lines("EXPIRETIME z", vec![info(true, Some(11_499))]), "11\n");
    assert_eq!(lines("TTL z", vec![info(true, None)]), "-1\n");
    assert_eq!(lines("TTL z", vec![info(false, None)]), "-2\n");

    let two = || Came::Scored(scored(&[("a", 1.0), ("b", 2.5)]));
    assert_eq!(lines("ZRANGE z 0 -1", vec![came(two())]), "a\nb\n");
    assert_eq!(lines("ZRANGE z 0 -1 WITHSCORES", vec![came(two())]), "a\n1\nb\n2.5\n");
    assert_eq!(lines("ZMPOP 1 z MIN COUNT 2", vec![came(two())]), "z\na\n1\nb\n2.5\n");
    assert_eq!(lines("ZMPOP 1 z MIN", vec![came(Came::Scored(v1::Scored::default()))]), "\n");
    let rank = v1::Rank { found: true, rank: 3, score: f64::INFINITY };
    assert_eq!(lines("ZRANK z a", vec![came(Came::Rank(rank))]), "3\n");
    assert_eq!(lines("ZRANK z a WITHSCORE", vec![came(Came::Rank(rank))]), "3\ninf\n");
    assert_eq!(lines("ZRANK z a", vec![came(Came::Rank(v1::Rank::default()))]), "\n");
    assert_eq!(lines("SPOP s", vec![came(members(&["a"]))]), "a\n");
    assert_eq!(lines("SPOP s", vec![came(members(&[]))]), "\n");
    assert_eq!(lines("SMEMBERS s", vec![came(members(&[]))]), "", "no items, no lines");
    assert_eq!(lines("LPOP l 2", vec![came(members(&[]))]), "\n");

    let page = |next: Option<&'static str>| {
        let items = Some(v1::page::Items::Scored(scored(&[("a", 1.0)])));
        came(Came::Page(v1::Page { items, next: next.map(|next| Bytes::from_static(next.as_bytes())) }))
    };
    assert_eq!(lines("ZSCAN z 0", vec![page(Some("a"))]), ">a\na\n1\n");
    assert_eq!(lines("ZSCAN z >a", vec![page(None)]), "0\na\n1\n");
    let Action::SortedScan(scan) = action("ZSCAN z >a MATCH x* COUNT 7") else { panic!() };
    let wanted = v1::PageOf { after: Some("a".into()), glob: Some("x*".into()), limit: 7 };
    assert_eq!(scan.page, Some(wanted));
}

#[test]
fn of_several_keys_that_must_all_be_absent_one_that_is_not_is_an_answer() {
    let request = parsed("MSETNX {t}a 1 {t}b 2").unwrap();
    assert!(request.atomic && request.operations.len() == 2);
    assert!(request.operations.iter().all(|one| one.condition == Some(Condition::IfAbsent(true))));
    assert_eq!(request.answer_to_refusal("BATCH_REFUSED", true), Some(Shown::Integer(0)));
    assert_eq!(request.answer_to_refusal("KEYS_APART", false), None);
    assert_eq!(parsed("SET k v NX").unwrap().answer_to_refusal("BATCH_REFUSED", true), None);
}
