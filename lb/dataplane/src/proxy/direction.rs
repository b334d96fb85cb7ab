//! One direction of a connection: from a source to a sink, with at most one buffer or pipe of bytes in between.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::pipe::{SpliceFlags, splice};

use super::pipe_pool::{PIPE_BYTES, Pipe, PipePool};

/// Bytes read at once. Shared by all connections of a worker; a connection holds bytes of its own only while its
/// sink is slower than its source, and reads no more until they are gone.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;

/// Rounds of reading and writing before other connections get their turn.
const ROUNDS_MAX: usize = 16;

/// A source that gives less than this before it runs dry is read rather than spliced: copying is then cheaper than
/// two more system calls.
const BULK_BYTES: u64 = 32 * 1024;

/// What every TCP takes as one segment (RFC 9293 §3.7.1).
const ONE_PACKET_BYTES: usize = 536;

/// What a worker's connections share.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) scratch: Box<[u8]>,
    pub(super) pipes: PipePool,
    /// Bytes of bulk transfers read since somebody looked.
    pub(super) bulk_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Direction {
    /// The source may have bytes.
    pub(super) readable: bool,
    /// The source has announced its end, which is still to be read.
    pub(super) ending: bool,
    /// The sink may have room.
    pub(super) writable: bool,
    /// The source has sent urgent data, before which every read stops short.
    pub(super) has_urgent_data: bool,
    stage: Stage,
    is_end_told: bool,
    promptness: Promptness,
    /// Read but not yet written, from `written` on.
    pending: Vec<u8>,
    written: usize,
    /// Takes the place of reading for bulk data.
    pipe: Option<Pipe>,
    piped: usize,
    bulk: bool,
}

/// Whether the sink sends small pieces at once (TCP_NODELAY) rather than when earlier ones are acknowledged.
///
/// A connection that carries one small request never needs it, and a system call per connection counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Promptness {
    /// Set.
    Set,
    /// Not set, and nothing is sent yet.
    Unset,
    /// Not set, and the first piece is sent.
    Due,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Copying.
    Open,
    /// The source has ended; what is left must be written.
    Flushing,
    /// All is written.
    Ended,
}

/// Where a direction stands when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// For an event of source or sink.
    Waiting,
    /// There is more to do, but others have their turn first.
    Unfinished,
    /// All bytes have been passed on.
    Ended,
    /// The source was reset.
    SourceFailed,
    /// The sink takes no more.
    SinkFailed,
}

/// Why a round of copying stopped.
enum Stop {
    Standing(Standing),
    Blocked,
}

impl Direction {
    pub(super) fn new(promptness: Promptness) -> Self {
        Self {
            readable: false,
            ending: false,
            writable: true,
            has_urgent_data: false,
            stage: Stage::Open,
            is_end_told: false,
            promptness,
            pending: Vec::new(),
            written: 0,
            pipe: None,
            piped: 0,
            bulk: false,
        }
    }

    pub(super) fn has_source_ended(&self) -> bool {
        self.ending || self.stage != Stage::Open
    }

    pub(super) fn has_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    /// Nothing more is passed on; the sink is not told.
    pub(super) fn abandon(&mut self, pipes: &mut PipePool) {
        self.release_pipe(pipes);
        self.pending = Vec::new();
        self.stage = Stage::Ended;
        self.is_end_told = true;
    }

    /// Copies what can be copied without waiting. Returns the number of bytes written.
    ///
    /// `inspect` sees bytes before they are written and may replace them; bulk data passes unseen unless `seen`.
    pub(super) fn pump(
        &mut self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        tools: &mut Tools,
        seen: bool,
        mut inspect: impl FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> (u64, Standing) {
        if self.is_idle() {
            return (0, Standing::Waiting);
        }
        let mut moved = 0;
        for _ in 0..ROUNDS_MAX {
            if self.stage == Stage::Ended {
                return (moved, Standing::Ended);
            }
            let round = self
                .flush(sink, &mut moved)
                .and_then(|()| self.finish())
                .and_then(|()| self.fill(source, sink, tools, seen, &mut inspect, &mut moved));
            match round {
                Ok(()) => {}
                Err(Stop::Standing(standing)) => return (moved, standing),
                Err(Stop::Blocked) => {
                    self.bulk &= moved >= BULK_BYTES || self.piped > 0;
                    if self.piped == 0 {
                        self.release_pipe(&mut tools.pipes);
                    }
                    return (moved, Standing::Waiting);
                }
            }
        }
        (moved, Standing::Unfinished)
    }

    /// Whether there is nothing to read, and nothing left to write: an event of a connection concerns one direction only.
    fn is_idle(&self) -> bool {
        self.stage == Stage::Open
            && !self.readable
            && !self.ending
            && self.pending.is_empty()
            && self.piped == 0
    }

    /// Writes what was read before.
    fn flush(&mut self, sink: BorrowedFd<'_>, moved: &mut u64) -> Result<(), Stop> {
        while self.written < self.pending.len() {
            self.be_prompt(sink, self.pending.len() - self.written);
            let count =
                self.sink_result(|this| send(sink, &this.pending[this.written..], SendFlags::NOSIGNAL))?;
            self.written += count;
            *moved += count as u64;
        }
        if !self.pending.is_empty() {
            // A connection that waits holds no memory.
            self.pending = Vec::new();
            self.written = 0;
        }
        while self.piped > 0 {
            self.be_prompt(sink, self.piped);
            let count = self.sink_result(|this| {
                let pipe = this.pipe.as_ref().expect("BUG: bytes in a pipe that is not there");
                splice(&pipe.read, None, sink, None, this.piped, SPLICE)
            })?;
            self.piped -= count;
            *moved += count as u64;
        }
        Ok(())
    }

    /// Everything before the source's end has been written.
    fn finish(&mut self) -> Result<(), Stop> {
        if self.stage != Stage::Flushing {
            return Ok(());
        }
        self.stage = Stage::Ended;
        Err(Stop::Standing(Standing::Ended))
    }

    /// Tells the sink the end, once, if it has been reached. Not needed where the sink is closed anyway.
    pub(super) fn pass_on_end(&mut self, sink: BorrowedFd<'_>) {
        if self.stage == Stage::Ended && !std::mem::replace(&mut self.is_end_told, true) {
            // Fails only if the sink has been reset, which its own event says.
            let _was_reset = shutdown(sink, Shutdown::Write);
        }
    }

    /// Reads, and writes at once as much as the sink takes.
    fn fill(
        &mut self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        tools: &mut Tools,
        seen: bool,
        inspect: &mut impl FnMut(&[u8]) -> Option<Vec<u8>>,
        moved: &mut u64,
    ) -> Result<(), Stop> {
        if self.stage != Stage::Open {
            return Ok(());
        }
        if !self.readable && !self.ending {
            return Err(Stop::Blocked);
        }
        let may_splice = !seen && !self.has_urgent_data;
        if self.bulk && may_splice && self.pipe.is_none() {
            self.pipe = tools.pipes.take();
        }
        if let Some(pipe) = self.pipe.as_ref().filter(|_| may_splice) {
            let result = retry_on_intr(|| splice(source, None, &pipe.write, None, PIPE_BYTES, SPLICE));
            // Nothing is the end, or urgent data, which no splice passes. Reading tells.
            if result != Ok(0) {
                self.piped = self.source_result(result)?;
                tools.bulk_bytes += self.piped as u64;
                inspect(&[]);
                return Ok(());
            }
        }
        let result = retry_on_intr(|| recv(source, &mut tools.scratch[..], RecvFlags::empty()));
        let count = self.source_result(result.map(|(count, _)| count))?;
        if count == 0 {
            return Ok(());
        }
        self.bulk = count == tools.scratch.len();
        if self.bulk {
            tools.bulk_bytes += count as u64;
        }
        if !self.bulk && !self.has_urgent_data {
            // A short read has emptied the source. Either its end had arrived before and is reached, or the event of
            // its next byte is yet to come.
            self.readable = false;
            if self.ending {
                self.stage = Stage::Flushing;
            }
        }
        let replaced = inspect(&tools.scratch[..count]);
        let bytes = replaced.as_deref().unwrap_or(&tools.scratch[..count]);
        self.be_prompt(sink, bytes.len());
        // The last bytes wait for the end, which follows at once, so that one packet carries both.
        let flags = if self.stage == Stage::Flushing { SendFlags::MORE } else { SendFlags::empty() };
        let written = match self.sink_result(|_| send(sink, bytes, flags | SendFlags::NOSIGNAL)) {
            Ok(count) => count,
            Err(Stop::Blocked) => 0,
            Err(stop) => return Err(stop),
        };
        *moved += written as u64;
        if written < bytes.len() {
            self.pending.extend_from_slice(&bytes[written..]);
        }
        Ok(())
    }

    /// Something small was sent to the sink already.
    pub(super) fn note_sent(&mut self) {
        if self.promptness == Promptness::Unset {
            self.promptness = Promptness::Due;
        }
    }

    /// Before bytes are sent: only the first piece, and only if it fits into one packet of any network, needs nothing.
    fn be_prompt(&mut self, sink: BorrowedFd<'_>, length: usize) {
        self.promptness = match self.promptness {
            Promptness::Unset if length <= ONE_PACKET_BYTES => Promptness::Due,
            Promptness::Unset | Promptness::Due => {
                // Fails only if the sink has been reset, which its own event says.
                let _was_reset = set_tcp_nodelay(sink, true);
                Promptness::Set
            }
            Promptness::Set => return,
        };
    }

    fn source_result(&mut self, result: Result<usize, Errno>) -> Result<usize, Stop> {
        match result {
            Ok(0) => {
                self.stage = Stage::Flushing;
                Ok(0)
            }
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => {
                self.readable = false;
                self.ending = false;
                Err(Stop::Blocked)
            }
            Err(_) => Err(Stop::Standing(Standing::SourceFailed)),
        }
    }

    fn sink_result(&mut self, write: impl Fn(&Self) -> Result<usize, Errno>) -> Result<usize, Stop> {
        if !self.writable {
            return Err(Stop::Blocked);
        }
        match retry_on_intr(|| write(self)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => {
                self.writable = false;
                Err(Stop::Blocked)
            }
            Err(_) => Err(Stop::Standing(Standing::SinkFailed)),
        }
    }

    /// Gives the pipe back, or closes it if bytes are left in it.
    pub(super) fn release_pipe(&mut self, pipes: &mut PipePool) {
        if let Some(pipe) = self.pipe.take() {
            if self.piped == 0 {
                pipes.give_back(pipe)
            } else {
                pipes.forget(pipe)
            }
            self.piped = 0;
        }
    }
}

const SPLICE: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
