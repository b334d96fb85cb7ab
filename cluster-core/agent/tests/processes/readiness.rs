//! What is found out about the readiness of tasks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesonet_model::{
    AgentCommand, ReadinessCheck, ReadinessResponse, ReadinessResult, StatusReason, TaskSpec, TaskState,
    TaskStatus,
};

use crate::Case;
use crate::cases::directory;
use crate::health::{self, Answer, LONG, say, serve_counting};
use crate::node::{Node, shell, wait_for};

/// All of them.
pub const ALL: &[Case] = &[
    ("a_task_is_asked_until_it_is_ready", None, a_task_is_asked_until_it_is_ready),
    ("readiness_outlives_the_agent", None, readiness_outlives_the_agent),
    ("a_task_that_nobody_waits_for_is_not_asked", None, a_task_that_nobody_waits_for_is_not_asked),
];

const WARMING: &str =
    "HTTP/1.1 503 Not now\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 7\r\n\r\nwarming";
const READY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes";

/// A server that answers this, a task that is asked through it, and how often it was.
struct Fixture {
    spec: TaskSpec,
    answer: Answer,
    asked: Arc<AtomicUsize>,
}

impl Fixture {
    fn new(keeps_response: bool) -> Self {
        let (answer, asked) = (Answer::default(), Arc::new(AtomicUsize::new(0)));
        say(&answer, WARMING);
        let mut spec = shell("late", "exec sleep 1000");
        spec.readiness_check = Some(ReadinessCheck {
            port: serve_counting(&answer, &asked),
            path: "well?really".to_owned(),
            tls: false,
            interval: Duration::from_millis(20),
            timeout: LONG,
            ready_statuses: vec![200],
            keeps_response,
        });
        Self { spec, answer, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// How often it was asked by whoever has begun to ask before this.
    fn asked_so_far(&self) -> usize {
        let port = self.spec.readiness_check.as_ref().expect("it has one").port;
        let mut own = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connects");
        own.write_all(b"GET /well?really HTTP/1.1\r\n\r\n").expect("asks");
        own.read_to_end(&mut Vec::new()).expect("is answered after those before it");
        self.asked()
    }

    fn wait_until_asked_again(&self) {
        let before = self.asked();
        wait_for("two more requests", || (self.asked() > before + 1).then_some(()));
    }
}

fn next(node: &mut Node) -> TaskStatus {
    let status = node.next_status("news of the check");
    node.acknowledge(&status);
    assert_eq!(status.state, TaskState::Running);
    assert_eq!(status.reason, Some(StatusReason::ReasonTaskCheckStatusUpdated));
    status
}

fn result(ready: bool, response: Option<(u16, &str, &str)>) -> Option<ReadinessResult> {
    let last_response = response.map(|(status, content_type, body)| ReadinessResponse {
        status,
        content_type: content_type.to_owned(),
        body: body.to_owned(),
    });
    Some(ReadinessResult { ready, last_response })
}

fn a_task_is_asked_until_it_is_ready() {
    let fixture = Fixture::new(true);
    let directory = directory();
    let mut node = Node::start(directory.path());
    node.launch(&fixture.spec);
    assert_eq!(node.until(&fixture.spec, TaskState::Running).readiness, result(false, None));
    assert_eq!(next(&mut node).readiness, result(false, Some((503, "text/plain", "warming"))));
    fixture.wait_until_asked_again();
    say(&fixture.answer, READY);
    assert_eq!(next(&mut node).readiness, result(true, Some((200, "", "yes"))), "nothing else was told");
    let asked = fixture.asked();
    health::end(&mut node, &fixture.spec);
    assert_eq!(fixture.asked(), asked);
}

fn readiness_outlives_the_agent() {
    let fixture = Fixture::new(false);
    let directory = directory();
    let mut node = Node::start(directory.path());
    node.launch(&fixture.spec);
    node.until(&fixture.spec, TaskState::Running);
    fixture.wait_until_asked_again();
    node.stop();
    let mut node = Node::start(directory.path());
    assert_eq!(node.registered[0].status.readiness, result(false, None));
    fixture.wait_until_asked_again();
    say(&fixture.answer, READY);
    assert_eq!(next(&mut node).readiness, result(true, None));
    let asked = fixture.asked();
    node.stop();
    let mut node = Node::start(directory.path());
    assert_eq!(node.registered[0].status.readiness, result(true, None));
    health::end(&mut node, &fixture.spec);
    assert_eq!(fixture.asked(), asked, "it was ready once");
}

fn a_task_that_nobody_waits_for_is_not_asked() {
    let fixture = Fixture::new(false);
    let directory = directory();
    let mut node = Node::start(directory.path());
    node.launch(&fixture.spec);
    node.until(&fixture.spec, TaskState::Running);
    node.send(AgentCommand::EndReadiness { task: fixture.spec.key.clone() });
    // The agent's answer shows that it has heard the command before.
    node.launch(&fixture.spec);
    let status = loop {
        let status = node.next_status("the answer to the second launch");
        if status.state == TaskState::Running {
            break status;
        }
    };
    assert_eq!(status.readiness, None);
    node.stop();
    let mut node = Node::start(directory.path());
    assert_eq!(
        (&node.registered[0].status.readiness, &node.registered[0].spec.key),
        (&None, &fixture.spec.key)
    );
    let asked = fixture.asked_so_far();
    say(&fixture.answer, READY);
    health::end(&mut node, &fixture.spec);
    assert_eq!(fixture.asked(), asked);
}
