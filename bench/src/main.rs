//! `cargo xtask bench quick`: what a packet of a known flow and a cached query cost, from `BPF_PROG_TEST_RUN`, as multiples of an empty
//! program measured in the same run.
//!
//! A program under test changes its frame (a query becomes an answer), so that it cannot simply be repeated. A small driver in the
//! BPF object, `bench_refill`, writes the frame anew and tail-calls the program under test. The same driver with the empty
//! program behind it is the base that is taken off. Rounds are interleaved; the table shows the mean of the middle half.

mod cases;
mod control;
mod dns;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use clap::{Parser, Subcommand};

use cases::Case;

/// Runs of the program in one kernel call.
const REPEAT: u32 = 50_000;
/// Kernel calls a case.
const ROUNDS: usize = 41;

#[derive(Parser)]
#[command(name = "gateway-bench")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Per-packet and per-query cost against an empty program; a minute
    Quick,
    /// How long clients wait for names, beside Unbound and dnsmasq; a minute
    Dns,
    /// A large cluster: first sync, memory, and how long changes take; two minutes
    Control,
}

fn main() -> ExitCode {
    let result = match Cli::parse().bench {
        Bench::Quick => quick(),
        Bench::Dns => dns::run(),
        Bench::Control => control::run(),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("gateway-bench: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn quick() -> Result<bool> {
    let mut ebpf = EbpfLoader::new()
        .map_max_entries("FLOWS4", 4096)
        .map_max_entries("FLOWS6", 4096)
        .map_max_entries("ENDPOINTS", 4096)
        .map_max_entries("MAGLEV", 4096)
        .load(gateway::kernel::OBJECT)
        .context("could not load the BPF object: run this as root")?;
    for name in ["empty", "xdp_uplink", "bench_refill"] {
        xdp(&mut ebpf, name)?.load().with_context(|| format!("the kernel refused {name}"))?;
    }
    let cases = cases::prepare(&mut ebpf)?;
    let empty = middle(&mut measure_plain(&mut ebpf, ROUNDS)?);
    let mut base: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    let mut full: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for case in &cases {
        verify(&mut ebpf, case)?;
    }
    for _ in 0..ROUNDS {
        for (at, case) in cases.iter().enumerate() {
            base[at].push(measure(&mut ebpf, case, "empty")?);
            full[at].push(measure(&mut ebpf, case, "xdp_uplink")?);
        }
    }
    println!("{:<44} {:>8} {:>8} {:>7} {:>7}", "per packet, one core", "ns", "ratio", "limit", "");
    println!("{:<44} {:>8.0} {:>8.2}", "empty program", empty, 1.0);
    let mut ok = true;
    for (at, case) in cases.iter().enumerate() {
        // The driver costs the same before both; what remains on top of an empty program is the work.
        let cost = middle(&mut full[at]) - middle(&mut base[at]) + empty;
        let ratio = cost / empty;
        let verdict = match case.limit {
            Some(limit) if ratio > limit => {
                ok = false;
                "OVER"
            }
            Some(_) => "ok",
            None => "",
        };
        let limit = case.limit.map_or_else(String::new, |limit| format!("{limit:.1}"));
        println!("{:<44} {cost:>8.0} {ratio:>8.2} {limit:>7} {verdict:>7}", case.name);
    }
    Ok(ok)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// Points the driver at a program and a frame.
fn arm(ebpf: &mut Ebpf, case: &Case, program: &str) -> Result<()> {
    let fd = xdp(ebpf, program)?.fd()?.try_clone()?;
    let mut next: ProgramArray<_> = ebpf.map_mut("BENCH_NEXT").context("no map BENCH_NEXT")?.try_into()?;
    next.set(0, &fd, 0)?;
    let mut frame: Array<_, [u8; cases::FRAME]> =
        ebpf.map_mut("BENCH_FRAME").context("no map BENCH_FRAME")?.try_into()?;
    frame.set(0, case.stored(), 0)?;
    Ok(())
}

/// The program does what the case is about, or the figure would mean something else.
fn verify(ebpf: &mut Ebpf, case: &Case) -> Result<()> {
    arm(ebpf, case, "xdp_uplink")?;
    let mut out = vec![0u8; 2048];
    let driver = xdp(ebpf, "bench_refill")?;
    let result = driver.test_run(TestRunOptions {
        data_in: Some(&case.frame),
        data_out: Some(&mut out),
        ..TestRunOptions::new()
    })?;
    if result.return_value != case.action {
        bail!("{}: the program returned {} and not {}", case.name, result.return_value, case.action);
    }
    out.truncate(result.data_size_out as usize);
    if out == case.frame {
        bail!("{}: the frame came back unchanged", case.name);
    }
    Ok(())
}

/// Nanoseconds a run.
fn measure(ebpf: &mut Ebpf, case: &Case, program: &str) -> Result<f64> {
    arm(ebpf, case, program)?;
    timed(xdp(ebpf, "bench_refill")?, &case.frame)
}

fn measure_plain(ebpf: &mut Ebpf, rounds: usize) -> Result<Vec<f64>> {
    let frame = [0u8; 64];
    let program = xdp(ebpf, "empty")?;
    (0..rounds).map(|_| timed(program, &frame)).collect()
}

/// The kernel's own clock: a call as a whole waits for grace periods that have nothing to do with the program.
fn timed(program: &Xdp, frame: &[u8]) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat: REPEAT, ..TestRunOptions::new() };
    Ok(program.test_run(options)?.duration.as_nanos() as f64)
}

/// Mean of the middle half: as deaf to outliers as a median, but finer than the kernel's whole nanoseconds.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let quarter = values.len() / 4;
    let half = &values[quarter..values.len() - quarter];
    half.iter().sum::<f64>() / half.len() as f64
}
