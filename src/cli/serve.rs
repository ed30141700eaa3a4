//! `flowmesh serve` and `flowmesh dev`: settings in, server on.

use std::path::PathBuf;

use clap::Args;
use flowmesh::config::sources::suspicious_variables;
use flowmesh::config::{Config, Machine, Mode, Sources};

use super::failure::Failure;
use super::output::{Out, note};
use super::settings::SettingFlags;

/// Arguments of `serve` and `dev`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The settings file; without it flowmesh.toml is read if it is in the working directory [FLOWMESH_CONFIG]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check the settings, say what they are, and end
    #[arg(long)]
    check: bool,

    #[command(flatten)]
    settings: SettingFlags,
}

impl ServeArgs {
    /// Gathers the settings and runs the server until it is told to stop.
    pub fn run(self, mode: Mode) -> Result<(), Failure> {
        let sources = Sources::of_process(mode, self.config, self.settings.0);
        for (name, meant) in suspicious_variables(&sources.environment) {
            note(format_args!("flowmesh: environment variable {name} is no setting; did you mean {meant}?"));
        }
        let config = Config::load(&sources, &Machine::detect()).map_err(Failure::Config)?;
        if self.check {
            let mut out = Out::new();
            out.line(format!("{config:#?}").as_bytes())?;
            return out.flush();
        }
        if mode == Mode::Dev {
            print_first_steps(&config);
        }
        flowmesh::boot::run(config).map_err(Failure::Ended)
    }
}

/// What to try next, on standard error so that logs and this stay together.
fn print_first_steps(config: &Config) {
    let at = if config.grpc_addr.port() == 50051 {
        String::new()
    } else {
        format!(" -a :{}", config.grpc_addr.port())
    };
    let data = match config.durability {
        flowmesh_model::Durability::Memory => "in memory only".to_owned(),
        _ => format!("in {}", config.data_dir.display()),
    };
    note(format_args!(
        "FlowMesh for trying out: gRPC on {}, HTTP on {}, data {data}.
In another terminal:
  flowmesh stream append logs{at} --file /var/log/dpkg.log
  flowmesh stream read logs{at} --follow
  flowmesh queue enqueue mail '{{\"to\":\"ada@example.org\"}}'{at} --priority 5 --delay 10s
  flowmesh queue work mail{at} --exec 'cat; echo'
  flowmesh kv set sessions user:1 '{{\"name\":\"Ada\"}}'{at} --ttl 60s && flowmesh kv get sessions user:1{at}
  flowmesh resources list{at}
  curl http://{}/metrics
Stop with Ctrl-C.
",
        config.grpc_addr, config.http_addr, config.http_addr
    ));
}
