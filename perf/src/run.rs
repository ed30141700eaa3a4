//! From arguments to results.

use std::io::Write;

use anyhow::Context;

use crate::cli::{Args, Command, Format, LoadArgs};
use crate::load::consumer::Follow;
use crate::load::{GroupSpec, KeySpace, LoadSpec, Work};
use crate::{baseline, meter, report, scenario};

/// Does what the arguments say, and writes results to standard output.
///
/// # Errors
/// What could not be measured, and why.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Load(args) => load(&args),
        Command::Baseline(args) => {
            let client = args.client_cpu.unwrap_or_else(|| meter::cores() - 1);
            let limits = baseline::measure(&args.dir, args.server_cpu, client, args.duration)?;
            print(args.output, &limits, || report::limits_table(&limits))
        }
        Command::Scenario(args) => scenario::run(&args.names, &args.lab),
        Command::All(lab) => scenario::run(&[], &lab),
        Command::List => {
            scenario::list();
            Ok(())
        }
        Command::EchoServer(args) => baseline::echo::serve(args.addr, args.cpu, |address| {
            println!("{address}");
            let _ = std::io::stdout().flush();
        }),
    }
}

fn print(
    format: Format,
    value: &impl serde::Serialize,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    match format {
        Format::Table => println!("{}", table().trim_end()),
        Format::Json => println!("{}", serde_json::to_string_pretty(value)?),
    }
    Ok(())
}

fn load(args: &LoadArgs) -> anyhow::Result<()> {
    let spec = load_spec(args)?;
    if !args.no_fill {
        fill(args)?;
    }
    let result = spec.run()?;
    print(args.output, &result, || report::load_table(&result))
}

fn load_spec(args: &LoadArgs) -> anyhow::Result<LoadSpec> {
    let mut works = Vec::new();
    if !args.mix.is_empty() {
        works.push(Work::Calls(args.mix.clone()));
    }
    works.extend(args.jobs.map(|batch| Work::Jobs { batch, value_bytes: args.value_bytes }));
    works.extend(args.produce.map(|batch| Work::Produce {
        batch,
        value_bytes: args.value_bytes,
        window: args.window,
    }));
    let group = |work, connections, streams| GroupSpec {
        work,
        resource: args.resource.clone(),
        targets: args.addrs.clone(),
        connections,
        streams,
        rate: args.rate,
        keys: KeySpace::new(args.keys, args.zipf),
        filled: !args.no_fill,
    };
    let mut groups: Vec<GroupSpec> =
        works.into_iter().map(|work| group(work, args.connections, args.streams)).collect();
    if args.subscribers > 0 {
        let follow = if args.from_earliest { Follow::All } else { Follow::Tail };
        let work = Work::Consume { follow, value_bytes: args.value_bytes };
        groups.push(GroupSpec { rate: None, ..group(work, args.subscribers, 1) });
    }
    anyhow::ensure!(!groups.is_empty(), "nothing to do: give --mix, --jobs, --produce or --subscribers");
    Ok(LoadSpec {
        name: "load".to_owned(),
        groups,
        warmup: args.warmup,
        duration: args.duration,
        cpus: if args.cpus.is_empty() { vec![meter::cores() - 1] } else { args.cpus.clone() },
        spin: args.spin,
        server: args.server_pid,
        seed: args.seed,
    })
}

/// Writes what reads need: every key, if keys are read; records, if the stream is; one, if it is subscribed to.
fn fill(args: &LoadArgs) -> anyhow::Result<()> {
    use crate::load::OpKind;
    let target = *args.addrs.first().context("no address")?;
    let find = |kind| args.mix.iter().find(|op| op.kind == kind);
    if let Some(get) = find(OpKind::Get) {
        let keys = KeySpace::new(args.keys, None);
        scenario::fill::keys(target, &args.resource, &keys, get.value_bytes)?;
    }
    if args.subscribers > 0 {
        scenario::fill::records(target, &args.resource, 1, args.value_bytes)?;
    }
    if let Some(read) = find(OpKind::Read) {
        scenario::fill::records(target, &args.resource, u64::from(read.batch), read.value_bytes)?;
    }
    Ok(())
}
