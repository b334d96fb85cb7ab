//! Several masters on etcd: whoever is asked answers, and none is missed.

use std::time::Instant;

use serde_json::json;
use ureq::http::Method;

use crate::harness::masters::Masters;
use crate::harness::{app, equal, eventually, process};

const NAMES: [&str; 3] = ["m1", "m2", "m3"];

/// The tasks of an app that run.
fn running(masters: &Masters, app: &str) -> Vec<String> {
    let tasks = masters.get(&format!("/v2/apps{app}/tasks"));
    let tasks = tasks["tasks"].as_array().expect("tasks").iter();
    let running = tasks.filter(|task| task["state"] == "TASK_RUNNING");
    let mut ids: Vec<String> = running.map(|task| task["id"].as_str().expect("id").to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn a_leader_that_is_killed_is_replaced_and_nothing_that_was_acknowledged_is_lost() {
    let mut masters = Masters::start(&NAMES);
    masters.start_node();
    let standby = masters.standbys()[0];

    // Whoever is asked, the leader answers.
    let web = app::web("/web", 2).to_string();
    masters.change(standby, &Method::POST, "/v2/apps", Some(&web), 201);
    eventually("both instances run", || equal(&running(&masters, "/web").len(), &2));
    let tasks = running(&masters, "/web");
    let vip = masters.vip("web");
    let before = app::who_all(vip, 2);
    // On a busy machine, another one may lead now than a moment ago.
    let (leader, standby) = eventually("all name the same leader", || {
        let leader = masters.leader()?;
        let standby = NAMES.into_iter().find(|name| *name != leader).expect("three masters");
        let named = |name| masters.send(name, Method::GET, "/v2/leader", None).json()["leader"].clone();
        equal(&named(standby), &named(leader))?;
        let list = masters.mesonet(standby, &["master", "list"]);
        let role = |name: &str| {
            let line = list.stdout.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_default().to_owned()
        };
        let is_right = |name: &str| role(name) == if name == leader { "leader" } else { "standby" };
        if NAMES.into_iter().all(is_right) { Ok((leader, standby)) } else { Err(format!("{list:?}")) }
    });

    // Writes go on until the leader dies in the middle of them.
    let mut acknowledged = Vec::new();
    for number in 0..10 {
        let id = format!("/before-{number}");
        let idle = app::idle(&id, 0).to_string();
        masters.change(standby, &Method::POST, "/v2/apps", Some(&idle), 201);
        acknowledged.push(id);
    }
    masters.kill(leader);
    let killed = Instant::now();
    let after = app::idle("/after", 0).to_string();
    eventually("a write is acknowledged again", || {
        let reply = masters.send(standby, Method::POST, "/v2/apps", Some(&after));
        // The one that was killed may have had it, without an answer.
        if matches!(reply.status, 201 | 409) { Ok(()) } else { Err(reply.text) }
    });
    println!("from kill -9 to the first acknowledged write: {} ms", killed.elapsed().as_millis());
    acknowledged.push("/after".to_owned());
    for id in &acknowledged {
        masters.send(standby, Method::GET, &format!("/v2/apps{id}"), None).expect(200);
    }

    // Nothing that runs has noticed, and the node has a master again.
    assert_eq!(running(&masters, "/web"), tasks);
    assert_eq!(masters.vip("web"), vip);
    for who in &before {
        assert!(process::is_alive(who.pid), "{who:?} was not restarted");
    }
    let scale = json!({ "instances": 3 }).to_string();
    let other = masters.standbys()[0];
    masters.change(other, &Method::PUT, "/v2/apps/web?force=true", Some(&scale), 200);
    eventually("the third instance runs", || equal(&running(&masters, "/web").len(), &3));
    assert!(app::who_all(vip, 3).is_superset(&before));
}

#[test]
fn a_leader_that_ends_in_order_is_replaced_at_once_and_the_last_one_leads_alone() {
    let mut masters = Masters::start(&NAMES);
    for _ in 0..2 {
        let leader = eventually("a master leads", || masters.leader());
        masters.stop(leader);
        // The last one may lead already.
        let asked = masters.standbys().first().copied();
        let asked = asked.unwrap_or_else(|| eventually("it leads", || masters.leader()));
        let idle = app::idle(&format!("/after-{leader}"), 0).to_string();
        masters.change(asked, &Method::POST, "/v2/apps", Some(&idle), 201);
        eventually("another master leads", || masters.leader().map(drop));
    }
    let last = eventually("the last one leads", || masters.leader());
    assert_eq!(masters.get("/v2/apps")["apps"].as_array().map(Vec::len), Some(2));
    // It gives leadership up, and there is nobody else.
    let term = masters.get("/v1/masters")["term"].clone();
    masters.send(last, Method::DELETE, "/v2/leader", None).expect(200);
    eventually("it leads again", || {
        let now = masters.get("/v1/masters")["term"].clone();
        if now.is_u64() && now != term { Ok(()) } else { Err(now.to_string()) }
    });
    assert_eq!(masters.get("/v2/apps")["apps"].as_array().map(Vec::len), Some(2));
}

#[test]
fn without_etcd_nothing_changes_and_everything_can_be_read() {
    let mut masters = Masters::start(&["m1", "m2"]);
    let leader = eventually("a master leads", || masters.leader());
    let standby = masters.standbys()[0];
    let idle = app::idle("/idle", 0).to_string();
    masters.change(standby, &Method::POST, "/v2/apps", Some(&idle), 201);
    masters.kill_etcd();
    eventually("the leader steps down", || match masters.leader() {
        Err(_) => Ok(()),
        Ok(name) => Err(format!("{name} leads")),
    });
    for name in [leader, standby] {
        masters.send(name, Method::GET, "/v2/apps/idle", None).expect(200);
        let refused = masters.send(name, Method::DELETE, "/v2/apps/idle", None);
        assert_eq!(refused.status, 503, "{}", refused.text);
        assert!(refused.text.contains("There is no leader"), "{}", refused.text);
        masters.send(name, Method::GET, "/ping", None);
    }
    masters.restart_etcd();
    eventually("a master leads again", || masters.leader().map(drop));
    masters.change(standby, &Method::DELETE, "/v2/apps/idle", None, 200);
}
