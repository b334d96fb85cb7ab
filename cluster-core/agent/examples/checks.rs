//! `./x bench checks`: what health checks cost an agent that makes many of them, over HTTP with one server.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use mesonet_agent::{AgentMetrics, CgroupMode, Config, LogLimits};
use mesonet_model::{
    AgentCommand, AgentId, AgentReport, FrameworkId, HealthCheck, HealthProbe, Resources, TaskId, TaskKey,
    TaskSpec,
};
use prometheus::Registry;
use tokio::sync::mpsc;

/// Tasks, and how many checks each has: a process for each check would measure processes.
const TASKS: usize = 100;
const CHECKS_PER_TASK: usize = 20;

/// How often each check is made.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long it is measured, after every check has succeeded.
const MEASURED: Duration = Duration::from_secs(20);

type Measured<T> = Result<T, Box<dyn std::error::Error>>;

/// With arguments, one of the processes that take part.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["supervise", directory] => return mesonet_agent::supervise(Path::new(directory)),
        ["serve"] => serve(),
        _ => measure(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Measured<()> {
    let server = Server::start()?;
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (commands, commands_receiver) = mpsc::channel(64);
        let (reports_sender, mut reports) = mpsc::channel(64);
        mesonet_agent::start(config(dir.path())?, commands_receiver, reports_sender).await?;
        let specs: Vec<TaskSpec> = (0..TASKS).map(|number| spec(number, server.address.port())).collect();
        let begun = Instant::now();
        let mut left = TASKS;
        let mut unsent = specs.iter();
        while left > 0 {
            if let Some(spec) = unsent.next() {
                commands.send(AgentCommand::Launch(Box::new(spec.clone()))).await?;
            }
            let Some(AgentReport::Status(status)) = reports.recv().await else { continue };
            left -= usize::from(status.healthy == Some(true));
            if let Some(uuid) = status.uuid {
                commands.send(AgentCommand::Acknowledge { task: status.task, uuid }).await?;
            }
        }
        println!("{} checks succeed after {:.1} s", TASKS * CHECKS_PER_TASK, begun.elapsed().as_secs_f64());
        let (before, begun) = (Use::of_this_process(&server)?, Instant::now());
        let told = count_reports(&mut reports, begun + MEASURED).await;
        Use::of_this_process(&server)?.since(&before).show(begun.elapsed(), told);
        for spec in specs {
            let grace = Some(Duration::ZERO);
            commands.send(AgentCommand::Kill { task: spec.key, grace }).await?;
        }
        let mut left = TASKS;
        while left > 0 {
            if let Some(AgentReport::Status(status)) = reports.recv().await {
                left -= usize::from(status.state.is_terminal());
            }
        }
        Ok(())
    })
}

/// What the agent tells until then: nothing, as long as nothing changes.
async fn count_reports(reports: &mut mpsc::Receiver<AgentReport>, until: Instant) -> usize {
    let mut count = 0;
    while let Ok(Some(_)) = tokio::time::timeout_at(until.into(), reports.recv()).await {
        count += 1;
    }
    count
}

fn config(directory: &Path) -> Measured<Config> {
    let program = std::env::current_exe()?.to_string_lossy().into_owned();
    Ok(Config {
        dir: directory.to_path_buf(),
        hostname: "bench".to_owned(),
        address: Ipv4Addr::LOCALHOST.into(),
        places: None,
        resources: Resources::default(),
        attributes: Vec::new(),
        supervisor: vec![program, "supervise".to_owned()],
        logs: LogLimits::default(),
        port: 0,
        cgroups: CgroupMode::Off,
        open_files: None,
        container_dns: Ipv4Addr::LOCALHOST.into(),
        tasks_end_with_agent: false,
        metrics: AgentMetrics::register(&Registry::new())?,
    })
}

fn spec(number: usize, port: u16) -> TaskSpec {
    let probe =
        HealthProbe::Http { port, path: "/health".to_owned(), tls: false, ignore_informational: false };
    let check = HealthCheck {
        probe,
        delay: Duration::ZERO,
        grace: Duration::from_secs(300),
        interval: INTERVAL,
        timeout: Duration::from_secs(10),
        failures_max: 0,
        ip_protocol: None,
    };
    let name = format!("task-{number}");
    TaskSpec {
        key: TaskKey::new(FrameworkId::new("bench"), TaskId::new(&name)),
        name,
        agent: AgentId::new("bench-S0"),
        resources: Resources::default(),
        command: mesonet_model::Command {
            shell: Some("exec sleep 1000".to_owned()),
            ..mesonet_model::Command::default()
        },
        image: None,
        discovery: None,
        labels: std::collections::BTreeMap::new(),
        health_checked: true,
        health_checks: vec![check; CHECKS_PER_TASK],
        readiness_check: None,
        kill_grace: Duration::ZERO,
        networking: None,
    }
}

/// What a process has used, and what was done for it.
struct Use {
    probes: u64,
    cpu: Duration,
    wake_ups: u64,
}

impl Use {
    fn of_this_process(server: &Server) -> Measured<Self> {
        let mut of_all = Self { probes: server.requests()?, cpu: Duration::ZERO, wake_ups: 0 };
        for task in fs::read_dir("/proc/self/task")? {
            let task = task?.path();
            let time = fs::read_to_string(task.join("schedstat"))?;
            let nanos = time.split_whitespace().next().and_then(|word| word.parse().ok());
            of_all.cpu += Duration::from_nanos(nanos.ok_or("no times in schedstat")?);
            let status = fs::read_to_string(task.join("status"))?;
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            of_all.wake_ups += switches.ok_or("no switches in status")?.trim().parse::<u64>()?;
        }
        Ok(of_all)
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            probes: self.probes - before.probes,
            cpu: self.cpu.saturating_sub(before.cpu),
            wake_ups: self.wake_ups - before.wake_ups,
        }
    }

    fn show(&self, time: Duration, told: usize) {
        let per_probe = |number: f64| number / self.probes as f64;
        println!(
            "{:.0} probes/s, {:.1} us of CPU and {:.2} wake-ups each, {:.1} % of a core; {told} reports",
            self.probes as f64 / time.as_secs_f64(),
            per_probe(self.cpu.as_secs_f64() * 1e6),
            per_probe(self.wake_ups as f64),
            100.0 * self.cpu.as_secs_f64() / time.as_secs_f64(),
        );
    }
}

/// A server of its own process. It ends with this.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start() -> Measured<Self> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program).arg("serve").stdout(Stdio::piped()).spawn()?;
        let output = process.stdout.take().ok_or("the server says nothing")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        Ok(Self { process, address: line.trim().parse()? })
    }

    /// Requests that it has answered.
    fn requests(&self) -> Measured<u64> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(b"GET /count HTTP/1.1\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.rsplit("\r\n").next().unwrap_or_default().parse()?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers one request after the other; the answer is how many it was.
fn serve() -> Measured<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    let mut count = 0_u64;
    let mut request = [0; 4096];
    for stream in listener.incoming() {
        // Who has asked may be gone.
        let Ok(mut stream) = stream else { continue };
        if stream.read(&mut request).is_ok_and(|length| length > 0) {
            let body = count.to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            count += 1;
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        }
    }
    Ok(())
}
