//! What the daemon's transport could carry if nothing else cost anything, beside plain TCP.

use crate::plain_tcp::PlainTcp;
use crate::process::own_cpu_s;
use crate::raw_stream::RawStream;
use crate::row::{Beside, Planned};
use crate::subject::{Bench, Report, Subject};

const BYTES: u64 = 1_000_000_000;
const GB: f64 = 1.0;

/// 1 GB over one stream between two processes.
#[derive(Debug)]
pub(super) struct Transport;

impl Subject for Transport {
    fn planned(&self) -> Vec<Planned> {
        vec![
            Planned::new(
                "transport/raw-stream",
                "MB/s",
                "1 GB over one libp2p stream (TCP, TLS, yamux) between two processes",
            ),
            Planned::new("transport/raw-stream-cpu", "s/GB", "CPU time of both its ends"),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let (raw_stream, plain_tcp) = (RawStream::start()?, PlainTcp::start()?);
        let (mut raw, mut raw_cpu) = (Vec::new(), Vec::new());
        let (mut plain, mut plain_cpu) = (Vec::new(), Vec::new());
        for round in 1..=bench.rounds {
            crate::progress(&format!("transport: round {round} of {}", bench.rounds));
            let cpu = own_cpu_s() + plain_tcp.process().cpu_s()?;
            plain.push(GB * 1e3 / plain_tcp.pull(BYTES)?);
            plain_cpu.push((own_cpu_s() + plain_tcp.process().cpu_s()? - cpu) / GB);
            let cpu = own_cpu_s() + raw_stream.process().cpu_s()?;
            raw.push(GB * 1e3 / raw_stream.pull(BYTES)?);
            raw_cpu.push((own_cpu_s() + raw_stream.process().cpu_s()? - cpu) / GB);
        }
        report.figure("transport/raw-stream", &raw, Some(Beside::new("plain TCP", plain)));
        report.figure("transport/raw-stream-cpu", &raw_cpu, Some(Beside::new("plain TCP", plain_cpu)));
        Ok(())
    }
}
