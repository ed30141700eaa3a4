//! Arguments of `flowmesh bench` and of `flowmesh-perf`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use crate::load::OpSpec;

/// Measures a server, this machine, or one against the other.
#[derive(ClapArgs, Clone, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Put load on a running server and measure it
    Load(Box<LoadArgs>),
    /// Measure what this machine can do at all: HTTP/2 echo, synced writes, large writes
    Baseline(BaselineArgs),
    /// Run scenarios: start a server for each, measure it beside the machine's limits, compare with the targets
    Scenario(ScenarioArgs),
    /// Run all scenarios
    All(LabArgs),
    /// List the scenarios
    List,
    /// Serve the bare echo that servers are compared with
    #[command(hide = true)]
    EchoServer(EchoArgs),
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Where the server of this machine listens by default.
const DEFAULT_ADDR: &str = "127.0.0.1:50051";

/// What load to put on a server.
#[derive(ClapArgs, Clone, Debug)]
pub struct LoadArgs {
    /// Servers: http://HOST:PORT, HOST:PORT or :PORT; connections go to them in turn
    #[arg(short, long = "addr", env = "FLOWMESH_ADDR", default_value = DEFAULT_ADDR, value_name = "ADDR", value_parser = target, hide_env_values = true)]
    pub addrs: Vec<SocketAddr>,
    /// Unary operations, NAME[*BATCH][/VALUE_BYTES][=WEIGHT], separated by commas: append, read, get, set, delete,
    /// enqueue
    #[arg(short, long, value_delimiter = ',', value_name = "OPS")]
    pub mix: Vec<OpSpec>,
    /// Clients that enqueue, reserve and acknowledge so many jobs a call
    #[arg(long, value_name = "BATCH", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub jobs: Option<u32>,
    /// Clients that append so many records a message through one long call each
    #[arg(long, value_name = "BATCH", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub produce: Option<u32>,
    /// Appends that such a client has under way
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub window: u32,
    /// So many subscriptions to the stream beside the other load
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub subscribers: usize,
    /// The subscriptions read the whole stream again and again, instead of what is appended
    #[arg(long)]
    pub from_earliest: bool,
    /// Bytes of values of jobs, producers and subscribers (those of --mix have their own)
    #[arg(long, default_value_t = 100, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub value_bytes: u32,
    /// Connections
    #[arg(short, long, default_value_t = 16)]
    pub connections: usize,
    /// Calls under way on each connection
    #[arg(short, long, default_value_t = 32)]
    pub streams: usize,
    /// Calls a second, whatever the server does, and latencies from when each was due; without it, the next call is
    /// made when one was answered
    #[arg(short, long, value_name = "CALLS/S", value_parser = rate)]
    pub rate: Option<f64>,
    /// Seconds that are measured
    #[arg(short, long, default_value = "10", value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,
    /// Seconds of load before
    #[arg(long, default_value = "2", value_name = "SECONDS", value_parser = seconds)]
    pub warmup: Duration,
    /// Keys
    #[arg(short, long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub keys: u64,
    /// Choose keys by Zipf's law with this exponent, such as 0.99, instead of all as often
    #[arg(long, value_name = "EXPONENT", value_parser = rate)]
    pub zipf: Option<f64>,
    /// Do not write every key before; keys may then be missing
    #[arg(long)]
    pub no_fill: bool,
    /// The stream, queue and store
    #[arg(long, default_value = "bench", value_name = "NAME")]
    pub resource: String,
    /// Cores of the generator, one thread each; the last core if not given
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub cpus: Vec<usize>,
    /// Look for answers all the time instead of sleeping
    #[arg(long)]
    pub spin: bool,
    /// The server's process, if it runs here, to measure its processor time
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Makes two runs ask for the same keys
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How results are written
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// Where and how long to measure the machine.
#[derive(ClapArgs, Clone, Debug)]
pub struct BaselineArgs {
    /// The core that plays the server
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The core of the generator; the last one if not given
    #[arg(long)]
    pub client_cpu: Option<usize>,
    /// Seconds for each measurement
    #[arg(short, long, default_value = "3", value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,
    /// A directory on the disk to measure
    #[arg(long, default_value = "target/perf", value_name = "DIR")]
    pub dir: PathBuf,
    /// How results are written
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// Which scenarios, and how.
#[derive(ClapArgs, Clone, Debug)]
pub struct ScenarioArgs {
    /// Names, as `list` shows them
    #[arg(required = true)]
    pub names: Vec<String>,
    /// How.
    #[command(flatten)]
    pub lab: LabArgs,
}

/// How scenarios are run.
#[derive(ClapArgs, Clone, Debug)]
pub struct LabArgs {
    /// The server's program; the flowmesh beside this one if not given
    #[arg(long, value_name = "PATH")]
    pub server: Option<PathBuf>,
    /// More arguments for every server started
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// A directory on the disk to measure; servers keep their data in it
    #[arg(long, default_value = "target/perf", value_name = "DIR")]
    pub dir: PathBuf,
    /// The core of the first shard; others follow
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The core of the generator; the last one if not given
    #[arg(long)]
    pub client_cpu: Option<usize>,
    /// How often machine and server are measured in turn; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Seconds of each measurement
    #[arg(short, long, default_value = "4", value_name = "SECONDS", value_parser = seconds)]
    pub duration: Duration,
    /// The generator looks for answers all the time instead of sleeping
    #[arg(long)]
    pub spin: bool,
    /// Where the dated results go; nowhere if not given
    #[arg(long, value_name = "DIR")]
    pub results: Option<PathBuf>,
    /// What the results are called beside the date
    #[arg(long, default_value = "scenarios")]
    pub name: String,
    /// How results are written to standard output
    #[arg(short, long, default_value = "table")]
    pub output: Format,
}

/// Where the bare echo listens.
#[derive(ClapArgs, Clone, Debug)]
pub struct EchoArgs {
    /// The address
    #[arg(long, default_value = "127.0.0.1:0")]
    pub addr: SocketAddr,
    /// The core
    #[arg(long)]
    pub cpu: Option<usize>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("allowed: 0 to 86400 seconds".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e9 => Ok(rate),
        _ => Err("allowed: a number above 0, up to 10⁹".to_owned()),
    }
}

/// An address, with or without `http://`, a host name or nothing before the port. No text at all, as of a variable that
/// is set to nothing, is the default.
fn target(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    if text.starts_with("https://") {
        return Err("the server does not speak TLS yet; use http://".to_owned());
    }
    let text = if text.is_empty() { DEFAULT_ADDR } else { text };
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let text = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text.to_owned() };
    let mut found = text.to_socket_addrs().map_err(|error| format!("{error}; write HOST:PORT"))?;
    found.next().ok_or_else(|| "no such host".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn addresses_are_those_of_the_client_commands() {
        for (text, address) in [
            ("", "127.0.0.1:50051"),
            (":7", "127.0.0.1:7"),
            ("http://127.0.0.2:7/", "127.0.0.2:7"),
            ("[::1]:7", "[::1]:7"),
        ] {
            assert_eq!(target(text), Ok(address.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_consistent_and_reads() {
        use clap::CommandFactory;
        Program::command().debug_assert();
        let parse = |line: &str| Program::try_parse_from(line.split(' '));
        let Command::Load(load) =
            parse("bench load -m get=9,set*10/200=1 -a :7 -r 5000 -d 0.5").unwrap().args.command
        else {
            panic!("not load")
        };
        assert_eq!(load.mix.len(), 2);
        assert_eq!(
            (load.addrs[0].port(), load.rate, load.duration),
            (7, Some(5000.0), Duration::from_millis(500))
        );
        assert!(parse("bench load -m get -a https://localhost:1").is_err());
        assert!(parse("bench load -m gett").is_err());
        assert!(parse("bench load -r 0").is_err());
        assert!(parse("bench scenario").is_err());
        assert!(parse("bench all --rounds 3 --results perf/results").is_ok());
    }
}
