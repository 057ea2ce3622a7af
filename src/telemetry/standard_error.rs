//! Standard error as a queue: a thread writes it, so that a reader that falls behind, or a pipe that is never read,
//! holds up nothing else. Lines that do not fit are dropped and counted.
//!
//! `tracing-appender` would do most of this, but it bounds the number of lines, not their bytes, does not report
//! dropped lines in the log, and needs a second library for time.

use std::{
    io::{self, Write},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait.
const QUEUE_BYTES: usize = 1024 * 1024;
/// For the lines so far to be written when the process ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The process' log, once logging has started.
static LOG: OnceLock<LogQueue> = OnceLock::new();

/// Lines that were not written.
pub(super) static DROPPED: LazyLock<Counter> = LazyLock::new(Counter::default);

enum Message {
    Line(Vec<u8>),
    /// Answered once all lines before it are written.
    Flush(SyncSender<()>),
}

/// Takes lines. Clones share the queue.
#[derive(Clone, Debug)]
pub(super) struct LogQueue {
    sender: Sender<Message>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
    dropped: Arc<AtomicUsize>,
}

impl LogQueue {
    /// Starts the thread that writes to standard error.
    pub fn start() -> Self {
        let (queue, messages) = Self::new(QUEUE_BYTES);
        let thread = queue.clone();
        std::thread::spawn(move || thread.write_all(&messages, &mut io::stderr()));
        LOG.get_or_init(|| queue).clone()
    }

    fn new(limit: usize) -> (Self, Receiver<Message>) {
        let (sender, messages) = channel();
        (Self { sender, waiting: Arc::default(), limit, dropped: Arc::default() }, messages)
    }

    fn push(&self, line: &[u8]) {
        let waiting = self.waiting.fetch_add(line.len(), Ordering::AcqRel);
        let fits = waiting + line.len() <= self.limit;
        if !fits || self.sender.send(Message::Line(line.to_vec())).is_err() {
            self.waiting.fetch_sub(line.len(), Ordering::AcqRel);
            self.dropped.fetch_add(1, Ordering::AcqRel);
            DROPPED.inc();
        }
    }

    fn write_all(&self, messages: &Receiver<Message>, out: &mut impl Write) {
        for message in messages {
            match message {
                Message::Line(line) => {
                    // A closed pipe is no reason to stop.
                    let _ = out.write_all(&line);
                    self.waiting.fetch_sub(line.len(), Ordering::AcqRel);
                }
                Message::Flush(done) => drop(done.try_send(())),
            }
            let lines = self.dropped.swap(0, Ordering::AcqRel);
            if lines > 0 {
                tracing::warn!(lines, "log lines were dropped: standard error was not read fast enough");
            }
        }
    }

    fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.sender.send(Message::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Prints a last line to standard error, after those of the log. Returns in any case, also if nothing reads
/// standard error, unless logging was not started.
pub fn print_last(line: Option<&str>) {
    match (LOG.get(), line) {
        (Some(log), line) => {
            if let Some(line) = line {
                log.push(format!("{line}\n").as_bytes());
            }
            log.flush();
        }
        (None, Some(line)) => eprintln!("{line}"),
        (None, None) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_queue_are_dropped_and_counted() {
        let (queue, messages) = LogQueue::new(10);
        for line in ["12345\n", "123\n", "1\n", "\n"] {
            queue.push(line.as_bytes());
        }
        assert_eq!(queue.dropped.load(Ordering::Acquire), 2);
        let mut written = Vec::new();
        let writer = queue.clone();
        drop(queue.sender);
        let LogQueue { sender, waiting, limit, dropped } = writer;
        let (closed, _) = channel();
        drop(sender);
        let writer = LogQueue { sender: closed, waiting, limit, dropped };
        writer.write_all(&messages, &mut written);
        assert_eq!(written, b"12345\n123\n");
        assert_eq!(writer.waiting.load(Ordering::Acquire), 0);
        assert_eq!(writer.dropped.load(Ordering::Acquire), 0, "they are reported");
    }
}
