//! What the daemon's transport could carry if nothing else cost anything, beside plain TCP, stock TLS and noise.

use crate::plain_tcp::PlainTcp;
use crate::process::{Running, own_cpu_s};
use crate::raw_stream::{RawStream, Security};
use crate::row::{Beside, Planned};
use crate::subject::{Bench, Report, Subject};

const BYTES: u64 = 1_000_000_000;
const GB: f64 = 1.0;

/// 1 GB over one stream between two processes.
#[derive(Debug)]
pub(super) struct Transport;

impl Subject for Transport {
    fn planned(&self) -> Vec<Planned> {
        let about = "1 GB over one libp2p stream (TCP, TLS with AES first, yamux) between two processes";
        vec![
            Planned::new("transport/raw-stream", "MB/s", about),
            Planned::new("transport/raw-stream-cpu", "s/GB", "CPU time of both its ends"),
            Planned::new("transport/beside-stock-tls", "MB/s", "the same beside libp2p-tls as shipped, ChaCha20 first"),
            Planned::new("transport/beside-noise", "MB/s", "the same beside libp2p-noise"),
            Planned::new("transport/cpu-beside-stock-tls", "s/GB", "its CPU time beside that of libp2p-tls as shipped"),
        ]
    }

    fn measure(&self, bench: &Bench, report: &mut Report) -> anyhow::Result<()> {
        let plain_tcp = PlainTcp::start()?;
        let [daemon, stock_tls, noise] = [Security::Daemon, Security::StockTls, Security::Noise].map(RawStream::start);
        let (daemon, stock_tls, noise) = (daemon?, stock_tls?, noise?);
        let mut seen: [Samples; 4] = Default::default();
        for round in 1..=bench.rounds {
            crate::progress(&format!("transport: round {round} of {}", bench.rounds));
            let [plain, ours, stock, with_noise] = &mut seen;
            plain.take(plain_tcp.process(), || plain_tcp.pull(BYTES))?;
            ours.take(daemon.process(), || daemon.pull(BYTES))?;
            stock.take(stock_tls.process(), || stock_tls.pull(BYTES))?;
            with_noise.take(noise.process(), || noise.pull(BYTES))?;
        }
        let [plain, ours, stock, with_noise] = seen;
        for (last, samples, beside) in [
            ("raw-stream", &ours.rate, Beside::new("plain TCP", plain.rate)),
            ("raw-stream-cpu", &ours.cpu, Beside::new("plain TCP", plain.cpu)),
            ("beside-stock-tls", &ours.rate, Beside::new("stock TLS", stock.rate)),
            ("beside-noise", &ours.rate, Beside::new("noise", with_noise.rate)),
            ("cpu-beside-stock-tls", &ours.cpu, Beside::new("stock TLS", stock.cpu)),
        ] {
            report.figure(&format!("transport/{last}"), samples, Some(beside));
        }
        Ok(())
    }
}

/// Samples of one transport: MB/s, and CPU seconds per GB of both ends.
#[derive(Debug, Default)]
struct Samples {
    rate: Vec<f64>,
    cpu: Vec<f64>,
}

impl Samples {
    fn take(&mut self, server: &Running, pull: impl FnOnce() -> anyhow::Result<f64>) -> anyhow::Result<()> {
        let before = own_cpu_s() + server.cpu_s()?;
        self.rate.push(GB * 1e3 / pull()?);
        self.cpu.push((own_cpu_s() + server.cpu_s()? - before) / GB);
        Ok(())
    }
}
