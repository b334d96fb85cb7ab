//! What is found out about the health of tasks.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesonet_agent::{Config, Place};
use mesonet_model::{
    AgentCommand, HealthCheck, HealthProbe, HealthResult, IpProtocol, StatusReason, TaskSpec, TaskState,
    TaskStatus,
};
use tokio::sync::watch;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::Case;
use crate::cases::directory;
use crate::networks::{self, in_namespace};
use crate::node::{self, Node, is_alive, shell, wait_for};

/// All of them.
pub const ALL: &[Case] = &[
    (
        "an_http_answer_decides_whether_a_task_is_healthy",
        None,
        an_http_answer_decides_whether_a_task_is_healthy,
    ),
    ("a_connection_decides_whether_a_task_is_healthy", None, a_connection_decides_whether_a_task_is_healthy),
    ("certificates_are_not_verified", None, certificates_are_not_verified),
    ("a_command_is_run_as_the_task_is", None, a_command_is_run_as_the_task_is),
    ("a_slow_command_ends_with_its_children", None, a_slow_command_ends_with_its_children),
    ("health_outlives_the_agent", None, health_outlives_the_agent),
    ("failures_do_not_count_before_the_first_success", None, failures_do_not_count_before_the_first_success),
    ("a_check_asks_an_address_of_its_version_of_ip", Some("needs root"), || {
        in_namespace(a_check_asks_an_address_of_its_version_of_ip)
    }),
    ("a_task_is_checked_where_its_node_has_moved_to", None, a_task_is_checked_where_its_node_has_moved_to),
    ("what_becomes_of_tasks_and_checks_is_counted", None, what_becomes_of_tasks_and_checks_is_counted),
    ("a_task_without_such_an_address_is_not_healthy", None, a_task_without_such_an_address_is_not_healthy),
    ("checks_are_made_where_the_task_is", Some("needs root"), || {
        in_namespace(checks_are_made_where_the_task_is)
    }),
];

/// Long enough for a machine that is busy, where nothing is meant to be late.
pub const LONG: Duration = Duration::from_secs(60);

fn check(probe: HealthProbe) -> HealthCheck {
    let delay = Duration::ZERO;
    let interval = Duration::from_millis(20);
    HealthCheck {
        probe,
        delay,
        grace: Duration::ZERO,
        interval,
        timeout: LONG,
        failures_max: 3,
        ip_protocol: None,
    }
}

fn http(port: u16, tls: bool) -> HealthCheck {
    check(HealthProbe::Http { port, path: "well?really".to_owned(), tls, ignore_informational: false })
}

fn command(line: &str) -> HealthCheck {
    check(HealthProbe::Command { shell: line.to_owned() })
}

fn checked(task: &str, line: &str, checks: Vec<HealthCheck>) -> TaskSpec {
    let mut spec = shell(task, line);
    spec.health_checked = true;
    spec.health_checks = checks;
    spec
}

/// Acknowledges statuses up to one that says this of a task's health, and with so many failures in a row.
fn until_health(node: &mut Node, spec: &TaskSpec, healthy: bool, failures: u32) -> TaskStatus {
    loop {
        let status = node.next_status("a change of health");
        node.acknowledge(&status);
        assert!(!status.state.is_terminal(), "{status:?}");
        let in_row = status.health_results.first().map(|result| result.consecutive_failures);
        if status.task == spec.key && status.healthy == Some(healthy) && in_row == Some(failures) {
            assert_eq!(status.state, TaskState::Running);
            assert_eq!(status.reason, Some(StatusReason::ReasonTaskHealthCheckStatusUpdated));
            return status;
        }
    }
}

fn cause(status: &TaskStatus) -> String {
    status.health_results[0].last_failure_cause.clone().expect("a cause")
}

pub fn end(node: &mut Node, spec: &TaskSpec) {
    node.kill(spec);
    loop {
        let status = node.next_status("the end of the task");
        node.acknowledge(&status);
        if status.state.is_terminal() {
            return;
        }
    }
}

/// What a server answers; nothing at all if empty.
pub type Answer = Arc<Mutex<String>>;

pub fn say(answer: &Answer, text: &str) {
    *answer.lock().expect("no panic holds it") = text.to_owned();
}

/// A server of this process that answers each request in the way that it is told. Gives its port.
fn serve(answer: &Answer) -> u16 {
    serve_counting(answer, &Arc::default())
}

/// One that counts requests, too.
pub fn serve_counting(answer: &Answer, asked: &Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let port = listener.local_addr().expect("bound").port();
    let (answer, asked) = (Arc::clone(answer), Arc::clone(asked));
    std::thread::spawn(move || {
        let mut unanswered = Vec::new();
        for stream in listener.incoming().flatten() {
            asked.fetch_add(1, Ordering::SeqCst);
            let text = answer.lock().expect("no panic holds it").clone();
            if text.is_empty() {
                unanswered.push(stream);
            } else {
                answer_request(stream, &text);
            }
        }
    });
    port
}

fn answer_request(mut stream: impl Read + Write, text: &str) {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => request.extend_from_slice(&chunk[..length]),
            Ok(_) | Err(_) => return,
        }
    }
    let asked = String::from_utf8_lossy(&request);
    assert!(asked.starts_with("GET /well?really HTTP/1.1\r\n"), "{asked}");
    // The prober may have seen enough.
    let _ = stream.write_all(text.as_bytes());
}

fn an_http_answer_decides_whether_a_task_is_healthy() {
    let directory = directory();
    let answer = Answer::default();
    say(&answer, "HTTP/1.1 503 Not now\r\nContent-Length: 2\r\n\r\nno");
    let mut spec = checked("http", "exec sleep 1000", vec![http(serve(&answer), false)]);
    let mut node = Node::start(directory.path());
    node.launch(&spec);
    let running = node.until(&spec, TaskState::Running);
    assert_eq!((running.healthy, running.health_results.len()), (None, 0), "nothing is known yet");
    let ill = until_health(&mut node, &spec, false, 1);
    assert!(cause(&ill).ends_with("answers with status 503 Service Unavailable"), "{}", cause(&ill));
    let hopeless = until_health(&mut node, &spec, false, 3);
    assert_eq!(hopeless.health_results[0].first_success, None);
    say(&answer, "HTTP/1.1 302 Found\r\nLocation: http://nowhere.test/\r\nContent-Length: 0\r\n\r\n");
    let well = until_health(&mut node, &spec, true, 0);
    assert!(well.health_results[0].last_failure >= ill.health_results[0].last_failure);
    say(&answer, "this is not HTTP\r\n\r\n");
    assert!(cause(&until_health(&mut node, &spec, false, 1)).contains("no HTTP answer"));
    say(&answer, "HTTP/1.0 200 OK\r\n\r\nuntil the end");
    until_health(&mut node, &spec, true, 0);
    say(&answer, &format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20)));
    assert!(cause(&until_health(&mut node, &spec, false, 1)).contains("no HTTP answer"));
    end(&mut node, &spec);

    // One that is slow.
    say(&answer, "");
    spec = checked("slow", "exec sleep 1000", spec.health_checks);
    spec.health_checks[0].timeout = Duration::from_millis(300);
    node.launch(&spec);
    assert_eq!(cause(&until_health(&mut node, &spec, false, 1)), "no answer within 0.3 s");
    end(&mut node, &spec);
}

fn a_connection_decides_whether_a_task_is_healthy() {
    // An address that nobody else uses, so that nobody takes the port meanwhile.
    let address = Ipv4Addr::new(127, 90, 12, 1);
    let listener = TcpListener::bind((address, 0)).expect("listens");
    let port = listener.local_addr().expect("bound").port();
    let directory = directory();
    let mut node = Node::with(Config { address: address.into(), ..node::config(directory.path()) });
    let spec = checked("tcp", "exec sleep 1000", vec![check(HealthProbe::Tcp { port })]);
    node.launch(&spec);
    until_health(&mut node, &spec, true, 0);
    drop(listener);
    let ill = until_health(&mut node, &spec, false, 1);
    assert!(cause(&ill).contains("Connection refused"), "{}", cause(&ill));
    assert!(ill.message.contains("Connection refused"), "{}", ill.message);
    let _listener = wait_for("the port", || TcpListener::bind((address, port)).ok());
    until_health(&mut node, &spec, true, 0);
    end(&mut node, &spec);
}

fn certificates_are_not_verified() {
    let issued = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der()));
    let config =
        ServerConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .expect("a configuration");
    let config = Arc::new(config);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listens");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let stream: StreamOwned<ServerConnection, TcpStream> = StreamOwned::new(connection, stream);
            answer_request(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = checked("https", "exec sleep 1000", vec![http(port, true)]);
    node.launch(&spec);
    until_health(&mut node, &spec, true, 0);
    end(&mut node, &spec);
}

fn a_command_is_run_as_the_task_is() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let line = r#"test "$PWD" = "$MESOS_SANDBOX" && test "$GREETING" = hello && test -e well"#;
    let mut spec = checked("command", "exec sleep 1000", vec![command(line), command("true")]);
    spec.command.environment.insert("GREETING".to_owned(), "hello".to_owned());
    node.launch(&spec);
    let ill = until_health(&mut node, &spec, false, 1);
    assert_eq!(cause(&ill), "Command exited with status 1");
    fs::write(node.sandbox(&spec).join("well"), "").expect("writes");
    until_health(&mut node, &spec, true, 0);
    fs::remove_file(node.sandbox(&spec).join("well")).expect("removes");
    until_health(&mut node, &spec, false, 1);
    let hopeless = until_health(&mut node, &spec, false, 3);
    assert_eq!(hopeless.health_results[1].is_alive(), Some(true), "each check has its own result");
    end(&mut node, &spec);
}

fn a_slow_command_ends_with_its_children() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    // A child of its own session, which does not get what is sent to the group; and one that is fast to fork.
    let line = "test -e begun && exit 0; touch begun; setsid sleep 1000 & echo $! > child; wait";
    let mut spec = checked("slow", "exec sleep 1000", vec![command(line)]);
    spec.health_checks[0].timeout = Duration::from_secs(4);
    node.launch(&spec);
    let ill = until_health(&mut node, &spec, false, 1);
    assert_eq!(cause(&ill), "the command did not end within 4 s");
    let child = node.number(&spec, "child");
    wait_for("the child's end", || (!is_alive(child)).then_some(()));
    until_health(&mut node, &spec, true, 0);
    end(&mut node, &spec);
}

fn health_outlives_the_agent() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = checked("web", "exec sleep 1000", vec![command("test ! -e ill")]);
    node.launch(&spec);
    let well = until_health(&mut node, &spec, true, 0);
    let sandbox = node.sandbox(&spec);
    node.stop();
    let mut node = Node::start(directory.path());
    let status = &node.registered[0].status;
    assert_eq!((status.healthy, &status.health_results), (Some(true), &well.health_results));
    fs::write(sandbox.join("ill"), "").expect("writes");
    // The first thing that the new agent has to say of it, since a success would be nothing new.
    let ill = until_health(&mut node, &spec, false, 1);
    assert_eq!(ill.health_results[0].first_success, well.health_results[0].first_success);
    end(&mut node, &spec);
}

fn failures_do_not_count_before_the_first_success() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let line = "n=$(cat tries 2>/dev/null || echo 0); echo $((n + 1)) > tries; test $n -ge 5";
    let mut spec = checked("late", "exec sleep 1000", vec![command(line)]);
    spec.health_checks[0].grace = LONG;
    node.launch(&spec);
    node.until(&spec, TaskState::Running);
    let first = node.next_status("the first success");
    assert_eq!(first.healthy, Some(true), "five failures were not told: {first:?}");
    node.acknowledge(&first);
    end(&mut node, &spec);
}

/// The task answers to both, but nothing that is HTTP.
fn a_check_asks_an_address_of_its_version_of_ip() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = networks::in_networks("greeter", &["greet", "8080"], &[networks::DUAL]);
    let of = |ip_protocol| HealthCheck { ip_protocol, ..http(8080, false) };
    spec.health_checked = true;
    spec.health_checks = vec![of(None), of(Some(IpProtocol::V4)), of(Some(IpProtocol::V6))];
    node.launch(&spec);
    let no_http = |result: &HealthResult, address: &str| {
        let cause = result.last_failure_cause.as_deref().unwrap_or_default();
        cause.contains(&format!("no HTTP answer from {address}:8080"))
    };
    loop {
        let status = node.next_status("failures of all checks");
        node.acknowledge(&status);
        assert!(!status.state.is_terminal(), "{status:?}");
        let expected = ["9.0.7.2", "9.0.7.2", "[fd01:b::7:0:0:2]"];
        if status.health_results.len() == expected.len()
            && status.health_results.iter().zip(expected).all(|(result, address)| no_http(result, address))
        {
            break;
        }
    }
    node.send(AgentCommand::Kill { task: spec.key.clone(), grace: Some(Duration::ZERO) });
    while !node.next_status("the end").state.is_terminal() {}
}

fn a_task_is_checked_where_its_node_has_moved_to() {
    let directory = directory();
    let place =
        |last: u8, hostname: &str| Place { address: [127, 0, 0, last].into(), hostname: hostname.to_owned() };
    let (mover, places) = watch::channel(place(1, "host.test"));
    let mut node = Node::with(Config { places: Some(places), ..node::config(directory.path()) });
    let listener = TcpListener::bind("127.0.0.2:0").expect("listens");
    let port = listener.local_addr().expect("bound").port();
    let spec = checked("t", "exec sleep 1000", vec![check(HealthProbe::Tcp { port })]);
    node.launch(&spec);
    until_health(&mut node, &spec, false, 1);
    until_health(&mut node, &spec, false, 3);
    mover.send(place(2, "moved.test")).expect("it listens");
    let (address, hostname) = node.next_place();
    assert_eq!((address.to_string(), hostname.as_str()), ("127.0.0.2".to_owned(), "moved.test"));
    until_health(&mut node, &spec, true, 0);
    node.kill(&spec);
    node.until(&spec, TaskState::Killed);
}

fn a_task_without_such_an_address_is_not_healthy() {
    let answer = Answer::default();
    say(&answer, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let check = HealthCheck { ip_protocol: Some(IpProtocol::V6), ..http(serve(&answer), false) };
    let directory = directory();
    let mut node = Node::start(directory.path());
    let spec = checked("v4", "exec sleep 1000", vec![check]);
    node.launch(&spec);
    assert_eq!(cause(&until_health(&mut node, &spec, false, 1)), "the task has no IPv6 address");
    end(&mut node, &spec);
}

/// A command in the task's network namespace reaches the task on the loopback interface, the agent by its address.
fn checks_are_made_where_the_task_is() {
    let directory = directory();
    let mut node = Node::start(directory.path());
    let mut spec = networks::in_networks("greeter", &["greet", "8080"], &[None]);
    let program = std::env::current_exe().expect("path of this program");
    let ask = format!("test $('{}' ask 127.0.0.1 8080) = 127.0.0.1", program.display());
    spec.health_checked = true;
    spec.health_checks = vec![command(&ask), check(HealthProbe::Tcp { port: 8080 })];
    node.launch(&spec);
    loop {
        let status = node.next_status("health");
        node.acknowledge(&status);
        assert!(!status.state.is_terminal(), "{status:?}");
        if status.healthy == Some(true) {
            break;
        }
    }
    node.send(AgentCommand::Kill { task: spec.key.clone(), grace: Some(Duration::ZERO) });
    while !node.next_status("the end").state.is_terminal() {}
}

fn what_becomes_of_tasks_and_checks_is_counted() {
    let directory = directory();
    let (config, registry) = node::counted(directory.path());
    let mut node = Node::with(config);
    let count = |name: &str, labels: &[&str]| node::shown(&registry, name, labels);
    let checks = |result: &str| count("mesonet_agent_checks_total", &["health", result]);
    assert_eq!(count("mesonet_agent_registrations_total", &[]), 1.0);
    for line in ["true", "false", "false"] {
        node.run(&shell(&format!("ends-{}", count("mesonet_agent_tasks_launched_total", &[])), line));
    }
    let ends = [("TASK_FINISHED", 1.0), ("TASK_FAILED", 2.0), ("TASK_KILLED", 0.0), ("TASK_ERROR", 0.0)];
    for (state, expected) in ends {
        assert_eq!(count("mesonet_agent_tasks_ended_total", &[state]), expected, "{state}");
    }
    assert_eq!((checks("success"), checks("failure")), (0.0, 0.0));
    let probe = HealthProbe::Command { shell: "test -e well".to_owned() };
    let checked = TaskSpec { health_checks: vec![check(probe)], ..shell("checked", "exec sleep 1000") };
    node.launch(&checked);
    node.until(&checked, TaskState::Running);
    wait_for("a check fails", || (checks("failure") >= 1.0).then_some(()));
    fs::write(node.sandbox(&checked).join("well"), "").expect("writes");
    wait_for("a check succeeds", || (checks("success") >= 1.0).then_some(()));
    wait_for("the task is shown", || (count("mesonet_agent_tasks", &["TASK_RUNNING"]) == 1.0).then_some(()));
    node.kill(&checked);
    wait_for("the end is counted", || {
        (count("mesonet_agent_tasks_ended_total", &["TASK_KILLED"]) == 1.0).then_some(())
    });
    // Nobody has acknowledged it.
    wait_for("statuses wait", || (count("mesonet_agent_unacknowledged_statuses", &[]) >= 1.0).then_some(()));
    assert_eq!(count("mesonet_agent_tasks_launched_total", &[]), 4.0);
}
