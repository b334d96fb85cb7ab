//! The processes that make connections and take them.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::{Measured, site};

/// Bytes that are read or written at once.
const CHUNK: usize = 128 << 10;

pub fn run(namespace: &str, words: &[&str]) -> Measured<()> {
    site::join(namespace)?;
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?;
    match words {
        ["serve"] => {
            stay_on_one_processor()?;
            serve()
        }
        ["connect", address] => {
            stay_on_one_processor()?;
            connect(address.parse()?)
        }
        ["hold", address, count] => hold(address.parse()?, count.parse()?),
        _ => Err("an unknown part".into()),
    }
}

/// All on the same, the last one: how fast processors wake each other up costs many times what is measured, and differs
/// from moment to moment.
fn stay_on_one_processor() -> Measured<()> {
    let mut set = CpuSet::new();
    set.set(thread::available_parallelism()?.get() - 1);
    Ok(sched_setaffinity(None, &set)?)
}

/// Takes connections at three ports, which it prints: one where each gets an octet and is closed, one where each gets
/// as much as it reads, one where each is held. Tells its processor time when asked.
fn serve() -> Measured<()> {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0"));
    let [short, bulk, held] = listeners;
    let (short, bulk, held) = (short?, bulk?, held?);
    println!("{} {} {}", short.local_addr()?, bulk.local_addr()?, held.local_addr()?);
    thread::spawn(move || {
        for mut stream in short.incoming().flatten() {
            let _ = stream.write_all(b"!");
        }
    });
    thread::spawn(move || {
        for mut stream in bulk.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[0; CHUNK]).is_ok() {});
        }
    });
    thread::spawn(move || held.incoming().flatten().collect::<Vec<TcpStream>>());
    // Until the other side ends.
    for order in io::stdin().lock().lines() {
        order?;
        println!("{}", processor_nanos());
    }
    Ok(())
}

/// Makes connections, or reads from one, for as long as told in milliseconds. Answers with the count, and with how long
/// it took and what processor time it cost this process, both in nanoseconds.
fn connect(address: SocketAddr) -> Measured<()> {
    for order in io::stdin().lock().lines() {
        let order = order?;
        let (what, millis) = order.split_once(' ').ok_or("an order without a time")?;
        let time = Duration::from_millis(millis.parse()?);
        // A new one each time: how fast one is depends on where its server happens to run. What it costs to make one and to
        // end it is not what is measured.
        let bulk = if what == "bulk" { Some(TcpStream::connect(address)?) } else { None };
        let (begun, processor) = (Instant::now(), processor_nanos());
        let mut count = 0_u64;
        if let Some(mut stream) = bulk.as_ref() {
            let mut buffer = vec![0; CHUNK];
            while begun.elapsed() < time {
                count += stream.read(&mut buffer)? as u64;
            }
        } else {
            while begun.elapsed() < time {
                let mut stream = TcpStream::connect(address)?;
                stream.read_exact(&mut [0])?;
                if stream.read(&mut [0])? != 0 {
                    return Err("more than an octet".into());
                }
                count += 1;
            }
        }
        println!("{count} {} {}", begun.elapsed().as_nanos(), processor_nanos() - processor);
    }
    Ok(())
}

/// Opens connections, says so, and says when the last of them has ended.
fn hold(address: SocketAddr, count: usize) -> Measured<()> {
    let mut streams =
        (0..count).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<TcpStream>>>()?;
    println!("open");
    for stream in &mut streams {
        if stream.read(&mut [0]).is_ok() {
            return Err("a connection ends without an error".into());
        }
    }
    println!("{}", monotonic_nanos());
    Ok(())
}

fn processor_nanos() -> u64 {
    nanos(ClockId::ProcessCPUTime)
}

/// The same for all processes.
pub fn monotonic_nanos() -> u64 {
    nanos(ClockId::Monotonic)
}

fn nanos(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    // Since the machine's or the process's start, so not negative.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
