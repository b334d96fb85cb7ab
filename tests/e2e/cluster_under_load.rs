//! What clients notice of a cluster's operation: every process restarted, the app replaced, a node drained, the leading
//! master killed, a node cut off, all while requests go through a virtual address. Each step prints what became of them.

use std::collections::BTreeSet;
use std::time::Instant;

use serde_json::json;

use crate::harness::load::{Connections, Load, Requests};
use crate::harness::{Nodes, app, eventually};

const HOSTS: [&str; 5] = ["n1", "n2", "n3", "n4", "n5"];

/// The host of the clients.
const CLIENTS: &str = "n1";

const INSTANCES: u32 = 6;

/// Writes before the leader is killed, and as many after.
const WRITES: usize = 10;

/// The cluster and what has to stay as it is.
struct Operation {
    nodes: Nodes,
    vip: String,
}

#[test]
#[ignore = "needs root"]
fn clients_notice_nothing_of_restarts_drains_and_deployments() {
    let mut operation = Operation::start();
    let tasks = operation.nodes.tasks("/web");

    let requests = operation.under_load("each etcd restarted", Operation::restart_etcd);
    assert_eq!(requests.failed, 0, "etcd is restarted");
    let requests = operation.under_load("each master restarted", Operation::restart_masters);
    assert_eq!(requests.failed, 0, "masters are restarted");
    let requests = operation.under_load("each agent restarted", Operation::restart_agents);
    assert_eq!(requests.failed, 0, "agents are restarted");
    let requests = operation.under_load("network daemons of other nodes restarted", |operation| {
        HOSTS.into_iter().filter(|host| *host != CLIENTS).for_each(|host| operation.restart_net(host));
    });
    assert_eq!(requests.failed, 0, "network daemons of other nodes are restarted");
    // Whoever is connected through the daemon's proxy loses the connection, and nobody listens until it is back.
    operation.under_load("network daemon of the clients' node restarted", |operation| {
        operation.restart_net(CLIENTS);
    });
    operation.under_load("leading master killed", Operation::kill_leader);
    assert_eq!(operation.nodes.tasks("/web"), tasks, "no restart has touched a task");

    let requests = operation.under_load("app restarted", Operation::restart_app);
    assert_eq!(requests.failed, 0, "the app is restarted");
    let requests = operation.under_load("a node drained", Operation::drain);
    assert_eq!(requests.failed, 0, "a node is drained");
    operation.under_load("a node cut off and healed", Operation::cut_and_heal);
    assert_eq!(operation.nodes.vip("web"), operation.vip);
    let clients = operation.nodes.who_all(CLIENTS, &operation.vip, INSTANCES as usize);
    assert_eq!(clients, operation.nodes.who_all("n5", &operation.vip, INSTANCES as usize));
}

impl Operation {
    #[track_caller]
    fn start() -> Self {
        let mut nodes = Nodes::start_on_etcd(&HOSTS);
        nodes.start_agents(&HOSTS);
        HOSTS.into_iter().for_each(|host| nodes.start_net(host));
        let mut web = app::web("/web", INSTANCES);
        web["env"] = json!({ "KEEP_ALIVE": "yes" });
        // However long this machine takes to restart an agent, its tasks are not given up.
        web["unreachableStrategy"] = json!({ "inactiveAfterSeconds": 60, "expungeAfterSeconds": 120 });
        nodes.deploy(&web);
        let vip = nodes.vip("web");
        let operation = Self { nodes, vip };
        operation.converge();
        operation.nodes.who_all(CLIENTS, &operation.vip, INSTANCES as usize);
        operation
    }

    /// Does something while requests go on, prints what became of them, and looks that the address is still the same.
    #[track_caller]
    fn under_load(&mut self, what: &str, step: impl FnOnce(&mut Self)) -> Requests {
        let kinds = [Connections::Kept, Connections::New];
        let loads = kinds.map(|kind| Load::start_steady(self.nodes.network(), CLIENTS, &self.vip, kind));
        let before = self.requests_seen();
        eventually("requests go through the address", || {
            let seen = self.requests_seen();
            if seen > before + 20.0 { Ok(()) } else { Err(format!("{before} and {seen} connections")) }
        });
        let began = Instant::now();
        step(self);
        self.converge();
        let took = began.elapsed();
        let [kept, new] = loads.map(Load::finish);
        println!(
            "STEP {what}: {:.1} s, {} requests, {} failed ({} on kept connections, {} on new ones), slowest {:.0} ms",
            took.as_secs_f64(),
            kept.answered + new.answered,
            kept.failed + new.failed,
            kept.failed,
            new.failed,
            kept.slowest.max(new.slowest).as_secs_f64() * 1e3,
        );
        assert!(kept.answered > 0 && new.answered > 0, "{what}: {kept:?} {new:?}");
        assert_eq!(self.nodes.vip("web"), self.vip, "{what}");
        kept + new
    }

    /// Connections that the proxy on the clients' host has had.
    fn requests_seen(&self) -> f64 {
        self.nodes.metric_sum(CLIENTS, "mesonet_lb_connections_total")
    }

    fn restart_etcd(&mut self) {
        for host in self.nodes.masters() {
            self.nodes.stop(host, "etcd");
            self.nodes.start_etcd(host);
        }
    }

    fn restart_masters(&mut self) {
        for host in self.nodes.masters() {
            self.nodes.stop(host, "master");
            self.nodes.start_master(host);
            self.nodes.wait_for_planes(2 * HOSTS.len());
            self.wait_for_agents();
        }
    }

    fn restart_agents(&mut self) {
        for host in HOSTS {
            self.nodes.stop(host, "agent");
            self.nodes.start_agent(host, None);
            self.wait_for_agents();
        }
    }

    fn restart_net(&mut self, host: &str) {
        self.nodes.stop(host, "net");
        self.nodes.start_net(host);
        let url = format!("http://{}/", self.vip);
        eventually("the daemon serves", || self.nodes.curl(host, &url));
        self.nodes.wait_for_planes(2 * HOSTS.len());
    }

    fn restart_app(&mut self) {
        self.nodes.mesonet(&["app", "restart", "web", "--timeout", "180s"]).success();
    }

    fn drain(&mut self) {
        let drained = self.busiest();
        self.nodes.mesonet(&["node", "drain", drained, "--timeout", "180s"]).success();
        assert_eq!(self.tasks_on(drained), 0, "{drained} is empty");
        self.nodes.mesonet(&["node", "undrain", drained]).success();
    }

    /// Kills the leader while somebody writes; what was acknowledged must be there afterwards.
    fn kill_leader(&mut self) {
        let leader = self.nodes.leader();
        let writer = self.nodes.start_writer(CLIENTS);
        eventually("the writer writes", || writer.has_written(WRITES));
        self.nodes.kill(leader, "master");
        let killed = Instant::now();
        let before = writer.acknowledged().len();
        eventually("the next leader takes a write", || writer.has_written(before + 1));
        println!("STEP first write after the leader's death: {:.2} s", killed.elapsed().as_secs_f64());
        eventually("the writer goes on", || writer.has_written(before + WRITES));
        self.nodes.start_master(leader);
        let acknowledged = writer.finish();
        let apps = self.nodes.get("/v2/apps");
        let kept: BTreeSet<&str> =
            apps["apps"].as_array().expect("apps").iter().filter_map(|app| app["id"].as_str()).collect();
        let lost: Vec<_> = acknowledged.iter().filter(|id| !kept.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "{} writes were acknowledged, {lost:?} are lost", acknowledged.len());
        self.wait_for_agents();
        self.nodes.wait_for_planes(2 * HOSTS.len());
    }

    /// The host with most of the tasks that is not the clients'.
    #[track_caller]
    fn busiest(&self) -> &'static str {
        let others = HOSTS.into_iter().filter(|host| *host != CLIENTS);
        let busiest = others.max_by_key(|host| self.tasks_on(host)).expect("hosts");
        assert!(self.tasks_on(busiest) > 0, "tasks run on {busiest}");
        busiest
    }

    fn tasks_on(&self, host: &str) -> usize {
        let address = self.nodes.network().address(host);
        self.nodes.tasks("/web").iter().filter(|(on, _)| *on == address).count()
    }

    fn cut_and_heal(&mut self) {
        let cut = self.busiest();
        self.nodes.network().cut(cut);
        eventually("the node is lost", || {
            let listed = self.nodes.mesonet(&["node", "list"]).success();
            let line = listed.lines().find(|line| line.starts_with(cut)).unwrap_or_default();
            if line.contains("unreachable") { Ok(()) } else { Err(listed) }
        });
        self.nodes.network().heal(cut);
        self.wait_for_agents();
        self.nodes.wait_for_planes(2 * HOSTS.len());
    }

    #[track_caller]
    fn converge(&self) {
        eventually("every plane is at the newest revision", || {
            let outcome = self.nodes.mesonet(&["converge", "--timeout", "5s"]);
            if outcome.code == Some(0) { Ok(()) } else { Err(outcome.stderr) }
        });
    }

    #[track_caller]
    fn wait_for_agents(&self) {
        eventually("every agent is connected", || {
            let view = self.nodes.get("/v1/view");
            let states = view["agents"].as_object().expect("agents").values().map(|agent| &agent["state"]);
            if states.clone().all(|state| state == "active") { Ok(()) } else { Err(format!("{states:?}")) }
        });
    }
}
