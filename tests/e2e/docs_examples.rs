//! The examples of the documentation are carried out, in the order in which they stand, against a server of their own.
//!
//! An example is a fenced block of a language of its own: `sh` has commands alone, `console` has them behind `$ ` and what they print
//! (standard output and standard error) below. Blocks of other languages are none, and one without a language must not begin like
//! one.
//!
//! - A command must end with 0, or with `N` if its comment is `# exit N` or begins `# exit N:`; one whose comment has `Ctrl-C` is interrupted after a
//!   second, and may end with 0 or 130.
//! - What it prints must be what is shown, line by line. White space between words may differ, since tables are as wide as what
//!   is in them; `…` stands for anything within a line, and a line that is `…` for any lines; one time as of RFC 3339 is as good as another.
//! - A comment before a block says what it needs and is not seen by readers of the page: `<!-- before: COMMANDS -->` is carried out first (files that
//!   the reader is supposed to have), `<!-- needs: TOOL -->` leaves the block out where the tool is not installed, and
//!   `<!-- not run: REASON -->` everywhere.
//! - Addresses of the documentation are those of the server of the test; another server is there at `:60051`.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::shell::{run, shell};
use crate::common::{Home, Server};

/// What a block without a language must not begin with.
const COMMANDS: [&str; 8] =
    ["flowmesh ", "curl ", "grpcurl ", "./scripts", "scripts/", "systemctl", "cargo ", "$ "];

/// Only turns a hang into a failure: a page takes a few seconds, or a minute on a machine that does much else.
const PAGE_DEADLINE: Duration = Duration::from_mins(3);

/// One command of a page.
struct Command {
    /// From 1.
    line: usize,
    script: String,
    /// What it prints, if the page shows it.
    shown: Option<Vec<String>>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Code(i32),
    Interrupted,
}

/// How a command ended, and what it printed.
struct Ended {
    code: i32,
    printed: String,
}

#[derive(Default)]
struct Page {
    commands: Vec<Command>,
    left_out: usize,
    problems: Vec<String>,
}

/// What the comments before a block say of it.
#[derive(Default)]
struct Marks {
    before: Option<(usize, String)>,
    is_left_out: bool,
}

impl Page {
    fn read(name: &str) -> Self {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        Self::parse(&text)
    }

    fn parse(text: &str) -> Self {
        let (mut page, mut marks) = (Self::default(), Marks::default());
        let mut lines = (1..).zip(text.lines());
        while let Some((number, line)) = lines.next() {
            if let Some(language) = line.trim_start().strip_prefix("```") {
                let block: Vec<&str> =
                    lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```").collect();
                page.block(language.trim(), number + 1, &block, std::mem::take(&mut marks));
            } else if let Some(comment) = line.strip_prefix("<!--") {
                let mut comment = comment.to_owned();
                while !comment.contains("-->") {
                    comment.push('\n');
                    comment.push_str(lines.next().expect("a comment ends").1);
                }
                page.comment(number, comment.trim_end().trim_end_matches("-->"), &mut marks);
            } else if !line.trim().is_empty() {
                marks = Marks::default();
            }
        }
        page
    }

    fn comment(&mut self, line: usize, comment: &str, marks: &mut Marks) {
        match comment.trim_start().split_once(':').map(|(word, rest)| (word, rest.trim())) {
            Some(("not run", reason)) if !reason.is_empty() => marks.is_left_out = true,
            Some(("not run", _)) => self.problems.push(format!("line {line}: `not run` says no reason")),
            Some(("needs", tool)) => marks.is_left_out |= !is_installed(tool),
            Some(("before", script)) => marks.before = Some((line, script.to_owned())),
            _ => {}
        }
    }

    fn block(&mut self, language: &str, first: usize, block: &[&str], marks: Marks) {
        let is_shell = matches!(language, "sh" | "console");
        if language.is_empty()
            && block.first().is_some_and(|line| COMMANDS.iter().any(|begin| line.starts_with(begin)))
        {
            self.problems
                .push(format!("line {first}: the block is an example, but neither `sh` nor `console`"));
        }
        if !is_shell {
            return;
        }
        if marks.is_left_out {
            self.left_out += 1;
            return;
        }
        if let Some((line, script)) = marks.before {
            self.commands.push(Command { line, script, shown: None, end: End::Code(0) });
        }
        if language == "sh" { self.commands_of(first, block) } else { self.session(first, block) }
    }

    /// Commands, each a line or several.
    fn commands_of(&mut self, first: usize, block: &[&str]) {
        let mut command: Option<Command> = None;
        for (line, text) in (first..).zip(block) {
            let so_far = command.get_or_insert_with(|| Command::new(line, String::new()));
            so_far.script.push_str(text);
            if goes_on(text) {
                so_far.script.push('\n');
            } else {
                self.commands
                    .extend(command.take().filter(Command::does_something).map(Command::told_how_to_end));
            }
        }
        assert!(command.is_none(), "line {first}: the last command of the block goes on");
    }

    /// Commands behind `$ `, and what they print.
    fn session(&mut self, first: usize, block: &[&str]) {
        let mut commands: Vec<Command> = Vec::new();
        for (line, text) in (first..).zip(block) {
            if let Some(script) = text.strip_prefix("$ ") {
                let command = Command::new(line, script.to_owned());
                commands.push(Command { shown: Some(Vec::new()), ..command });
            } else {
                let command = commands.last_mut().expect("a session begins with a command");
                let shown = command.shown.get_or_insert_default();
                if shown.is_empty() && goes_on(&command.script) {
                    command.script.push('\n');
                    command.script.push_str(text.strip_prefix("> ").unwrap_or(text));
                } else {
                    shown.push((*text).to_owned());
                }
            }
        }
        self.commands.extend(commands.into_iter().map(Command::told_how_to_end));
    }
}

impl Command {
    fn new(line: usize, script: String) -> Self {
        Self { line, script, shown: None, end: End::Code(0) }
    }

    fn does_something(&self) -> bool {
        !self.script.trim().is_empty() && !self.script.trim_start().starts_with('#')
    }

    /// As its comment says.
    fn told_how_to_end(mut self) -> Self {
        if let Some((_, comment)) = self.script.rsplit_once(" # ") {
            let code =
                comment.trim().strip_prefix("exit ").and_then(|rest| rest.split(':').next()?.parse().ok());
            if let Some(code) = code {
                self.end = End::Code(code);
            } else if comment.contains("Ctrl-C") {
                self.end = End::Interrupted;
            }
        }
        self
    }

    /// Within a script that carries out one after the other, in one shell.
    fn write(&self, number: usize, script: &mut String) {
        let command = match self.end {
            End::Code(_) => format!("{{ {}\n}}", self.script),
            End::Interrupted => {
                let quoted = self.script.replace('\'', r"'\''");
                format!("timeout -s INT --preserve-status 1 bash -o pipefail -c '{quoted}'")
            }
        };
        writeln!(script, "printf '\\036%d\\n' {number}\n{command}\nprintf '\\037%d\\n' $?").unwrap();
    }

    /// What is wrong with how it ended.
    fn problem(&self, ended: Option<&Ended>) -> Option<String> {
        let Some(ended) = ended else { return Some("did not end".to_owned()) };
        let is_expected = match self.end {
            End::Code(code) => ended.code == code,
            End::Interrupted => matches!(ended.code, 0 | 130),
        };
        if !is_expected {
            return Some(format!("ended with {}, not {:?}", ended.code, self.end));
        }
        let shown = self.shown.as_ref()?;
        let printed: Vec<&str> = ended.printed.lines().collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        (!are_alike(&shown, &printed)).then(|| format!("is shown as printing\n{}", shown.join("\n")))
    }
}

/// Whether a command goes on in the next line.
fn goes_on(line: &str) -> bool {
    let line = line.trim_end();
    ["\\", "|", "&&", "||"].iter().any(|end| line.ends_with(end))
}

fn is_installed(tool: &str) -> bool {
    std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join(tool).is_file())
}

/// Whether what is shown is what was printed.
fn are_alike(shown: &[&str], printed: &[&str]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((line, rest)) if line.trim() == "…" => {
            (0..=printed.len()).any(|left_out| are_alike(rest, &printed[left_out..]))
        }
        Some((line, rest)) => printed
            .split_first()
            .is_some_and(|(first, others)| is_line_alike(line, first) && are_alike(rest, others)),
    }
}

fn is_line_alike(shown: &str, printed: &str) -> bool {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, printed) = (timeless(&words(shown)), timeless(&words(printed)));
    let mut parts = shown.split('…');
    let Some(mut rest) = printed.strip_prefix(parts.next().unwrap()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A line with all times, such as 2026-11-21T12:00:00.000Z, being one.
fn timeless(line: &str) -> String {
    const FORM: &str = "0000-00-00T00:00:00.000Z";
    let is_time = |at: usize| {
        line.as_bytes().get(at..at + FORM.len()).is_some_and(|bytes| {
            bytes
                .iter()
                .zip(FORM.bytes())
                .all(|(byte, form)| if form == b'0' { byte.is_ascii_digit() } else { *byte == form })
        })
    };
    let mut out = String::new();
    let mut rest = 0;
    while let Some(c) = line[rest..].chars().next() {
        if is_time(rest) {
            out.push_str(FORM);
            rest += FORM.len();
        } else {
            out.push(c);
            rest += c.len_utf8();
        }
    }
    out
}

/// What was printed between the marks that the script writes around each command.
fn ends(output: &str, commands: usize) -> Vec<Option<Ended>> {
    let mut ends: Vec<Option<Ended>> = (0..commands).map(|_| None).collect();
    for part in output.split('\u{1e}').skip(1) {
        let (number, rest) = part.split_once('\n').unwrap();
        if let Some((printed, behind)) = rest.rsplit_once('\u{1f}') {
            let code = behind.lines().next().and_then(|code| code.parse().ok()).unwrap();
            ends[number.parse::<usize>().unwrap()] = Some(Ended { code, printed: printed.to_owned() });
        }
    }
    ends
}

/// With the addresses of these servers.
fn addressed(script: &str, server: &Server, other: &Server) -> String {
    script
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{}", server.http_port()))
        .replace(":50051", &format!(":{}", server.grpc_port()))
        .replace(":60051", &format!(":{}", other.grpc_port()))
        .replace("/var/log/dpkg.log", "dpkg.log")
}

fn lines_of_a_package_log(path: &Path) {
    let lines = (0..40).map(|i| format!("2026-11-21 12:00:{i:02} install package{i}:amd64 <none> 1.{i}\n"));
    fs::write(path, lines.collect::<String>()).unwrap();
}

/// Carries out the examples of a page; what was wrong.
fn problems_of(page: &Page) -> Vec<String> {
    let (home, other_home) = (Home::new(), Home::new());
    let (server, other) = (home.start(), other_home.start());
    lines_of_a_package_log(&home.scratch().join("dpkg.log"));
    let mut script = "set +eu\n".to_owned();
    for (number, command) in page.commands.iter().enumerate() {
        command.write(number, &mut script);
    }
    let path = home.scratch().join("printed");
    let output = fs::File::create(&path).unwrap();
    let mut bash = shell(&server, &home, &addressed(&script, &server, &other))
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .process_group(0)
        .spawn()
        .unwrap();
    let started = Instant::now();
    while bash.try_wait().unwrap().is_none() && started.elapsed() < PAGE_DEADLINE {
        std::thread::sleep(Duration::from_millis(10));
    }
    // What an example started in the background ends with the examples, and so does a command that hangs.
    // SAFETY: no memory is involved; the group is that of a child that is not forgotten.
    unsafe { libc::killpg(bash.id().try_into().unwrap(), libc::SIGKILL) };
    bash.wait().unwrap();
    let printed = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
    let mut problems = page.problems.clone();
    for (command, ended) in page.commands.iter().zip(ends(&printed, page.commands.len())) {
        if let Some(problem) = command.problem(ended.as_ref()) {
            let printed = ended.map_or_else(String::new, |ended| ended.printed);
            problems
                .push(format!("line {}: {}\n{problem}\nit printed\n{printed}", command.line, command.script));
        }
    }
    problems
}

/// All examples of a page, of which there are at least so many.
#[track_caller]
fn assert_page(name: &str, commands_min: usize) {
    let page = Page::read(name);
    let count = page.commands.len();
    assert!(count >= commands_min, "{name} has {count} commands, {} blocks are left out", page.left_out);
    let problems = problems_of(&page);
    assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n\n"));
}

#[test]
fn what_the_readme_shows_works() {
    assert_page("README.md", 15);
}

#[test]
fn what_the_command_line_reference_shows_works() {
    assert_page("docs/cli.md", 120);
}

#[test]
fn what_operations_shows_works() {
    assert_page("docs/operations.md", 8);
}

#[test]
fn what_is_said_of_the_commands_of_redis_works() {
    assert_page("docs/redis.md", 8);
}

#[test]
fn examples_of_other_pages_are_marked() {
    for name in ["docs/api.md", "CONTRIBUTING.md", "perf/README.md", "examples/package-log/README.md"] {
        let page = Page::read(name);
        assert!(page.problems.is_empty(), "{name}: {:?}", page.problems);
        assert!(page.commands.is_empty(), "{name}: examples that no test carries out say `not run`, and why");
    }
}

/// Each form that the tables of `docs/redis.md` give is carried out, on keys that hold what its group is for.
#[test]
fn every_form_of_a_command_of_redis_is_carried_out() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/redis.md")).unwrap();
    let home = Home::new();
    let server = home.start();
    let (mut group, mut forms) = ("", 0);
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            group = title;
        }
        let Some(form) = line.strip_prefix("| `").and_then(|row| row.split("` | `").nth(1)) else { continue };
        let form = form.trim_end_matches("` |");
        let before = match group {
            "String" => "",
            "Generic" => "MSET a 1 b 2 k v {t}a 1\n",
            "Hash" => "HSET h a 1 b 2\n",
            "Set" => "SADD s a b m\nSADD {t}a m n\nSADD {t}b n\n",
            "Sorted set" => "ZADD z 1 a 2 b\nZADD {t}a 1 m 2 n\nZADD {t}b 3 n\n",
            "List" => "RPUSH l a b\nRPUSH {t}a x\n",
            group => panic!("{group}: {form}"),
        };
        fs::write(home.scratch().join("commands"), format!("SET before 1\n{before}{form}\n")).unwrap();
        let output = run(&server, &home, &format!("flowmesh kv do store-{forms} - < commands"));
        assert!(output.status.success(), "{form}: {output:?}");
        forms += 1;
    }
    assert!(forms > 110, "{forms}");
}

const RIGHT: &str = "
```sh
printf 'a\\nb\\n' |
  cat
false       # exit 1: as it is said
true        # exit 1 if it were false
tail -f /dev/null  # Ctrl-C ends it

false; true
```

<!-- before: echo here > made -->
```console
$ cat made
here
$ printf 'since 2026-11-21T12:00:00.000Z,   17 of them\\nmore\\nend\\n'
since 2020-01-01T00:00:00.000Z, … of them
…
end
$ printf '' |
>   cat
```

<!-- not run: it takes a day -->
```sh
sleep 86400
```
";

/// With what must be said of each command and block in order.
const WRONG: &str = "
```sh
true; false
true        # exit 1
false       # exit 2
exit 7
```
<!-- before: echo there > made; false -->
```console
$ cat made
here
$ printf 'since 2020-01-01 12:00'
since 2020-01-01T00:00:00.000Z
$ printf 'begin\\nend\\n'
begin
$ printf 'begin\\nend\\n'
…
begin
$ printf 'of 17'
… of 18
$ true
something
```
<!-- not run: -->
```sh
false
```
```
flowmesh of no language
```
";

#[test]
fn an_example_that_does_something_else_is_found() {
    let problems = problems_of(&Page::parse(RIGHT));
    assert!(problems.is_empty(), "{problems:#?}");
    // A command that ends the shell, here and below, leaves those behind it without an end.
    let wrong = WRONG.replacen("exit 7", "(exit 7)", 1);
    let shown = "is shown as printing";
    let expected = [
        "`not run` says no reason",
        "neither `sh` nor `console`",
        "line 3: true; false\nended with 1, not Code(0)",
        "ended with 0, not Code(1)",
        "ended with 1, not Code(2)",
        "ended with 7, not Code(0)",
        "line 8: echo there > made; false\nended with 1, not Code(0)",
        shown,
        shown,
        shown,
        shown,
        shown,
        shown,
        "line 26: false\nended with 1, not Code(0)",
    ];
    let problems = problems_of(&Page::parse(&wrong));
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.contains(expected), "{expected}: {problem}");
    }
    let unended = problems_of(&Page::parse(WRONG));
    assert!(unended[5].contains("line 6: exit 7\ndid not end"), "{unended:#?}");
    assert_eq!(unended.len(), expected.len());
}
