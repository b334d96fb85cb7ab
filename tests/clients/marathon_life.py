"""The life of an app by way of the marathon library: added, listed, updated, scaled, restarted, killed and removed.

Usage: marathon_life.py URL
"""

import sys
import threading
import time

from marathon import MarathonClient
from marathon.exceptions import ConflictError, NotFoundError
from marathon.models import MarathonApp
from marathon.models.app import PortDefinition, ReadinessCheck

APP = "/library"
PATIENCE = 60

client = MarathonClient(sys.argv[1])
events = []
attached = threading.Event()
ended = threading.Event()


def listen():
    for event in client.event_stream():
        events.append(event)
        attached.set()
        if event.event_type == "app_terminated_event":
            ended.set()
            return


def wait_until_deployed():
    deadline = time.monotonic() + PATIENCE
    while client.list_deployments():
        assert time.monotonic() < deadline, client.list_deployments()
        time.sleep(0.05)


def running():
    return {task.id for task in client.list_tasks(APP) if task.state == "TASK_RUNNING"}


def wait_for_tasks(count, without=frozenset()):
    deadline = time.monotonic() + PATIENCE
    while len(running()) != count or running() & without:
        assert time.monotonic() < deadline, (count, without, running())
        time.sleep(0.05)
    return running()


assert client.ping().strip() == b"pong"
assert client.get_info().name == "marathon"
client.get_leader()
assert client.delete_leader()["message"] == "Leadership abdicated"
client.get_metrics()
threading.Thread(target=listen, daemon=True).start()
assert attached.wait(PATIENCE), "the event stream attaches"

app = MarathonApp(cmd="exec sleep 3600", cpus=0.1, mem=16, instances=1, labels={"tier": "test"})
created = client.create_app(APP, app)
assert created.id == APP and created.instances == 1, created
try:
    client.create_app(APP, app)
    raise AssertionError("an app is created twice")
except ConflictError:
    pass
wait_until_deployed()
wait_for_tasks(1)
assert [listed.id for listed in client.list_apps()] == [APP]
assert [listed.id for listed in client.list_apps(label="tier==test", embed_tasks=True)] == [APP]
assert client.list_apps(label="tier==other") == []

client.update_app(APP, MarathonApp(env={"LEVEL": "debug"}))
wait_until_deployed()
assert client.get_app(APP).env == {"LEVEL": "debug"}
assert client.get_app(APP).cmd == "exec sleep 3600", "an update keeps what it does not name"
assert len(client.list_versions(APP)) == 2

client.scale_app(APP, instances=3)
wait_until_deployed()
before = wait_for_tasks(3)

client.restart_app(APP)
wait_until_deployed()
restarted = wait_for_tasks(3, without=before)

victim = sorted(restarted)[0]
assert client.kill_task(APP, victim).id == victim
wait_for_tasks(3, without={victim})
wait_until_deployed()
client.kill_tasks(APP, scale=True, batch_size=0)
wait_until_deployed()
assert client.get_app(APP).instances == 0


def readiness():
    """What the only deployment has found of the readiness of its first app's instances."""
    actions = [action for deployment in client.list_deployments() for action in deployment.current_actions]
    return actions[0].readiness_check_results if actions else []


check = ReadinessCheck(
    name="warm",
    port_name="web",
    path="/nothing",
    interval_seconds=3,
    timeout_seconds=2,
    http_status_codes_for_ready=[599],
    preserve_last_response=True,
)
server = "exec python3 -m http.server $PORT0 --bind $HOST"
ports = [PortDefinition(port=0, name="web", protocol="tcp")]
late = MarathonApp(cmd=server, cpus=0.1, mem=32, port_definitions=ports, readiness_checks=[check])
client.create_app("/late", late)
deadline = time.monotonic() + PATIENCE
while [result.get("lastResponse", {}).get("status") for result in readiness()] != [404]:
    assert time.monotonic() < deadline, client.list_deployments()
    time.sleep(0.05)
shown = client.get_app("/late", embed_readiness=True)
assert shown.readiness_checks[0].http_status_codes_for_ready == [599], shown.readiness_checks
assert [result["ready"] for result in shown.readiness_check_results] == [False], shown.readiness_check_results
client.delete_app("/late", force=True)
wait_until_deployed()

for endpoint in client.list_endpoints():
    raise AssertionError(f"nothing runs, but {endpoint} is listed")
client.list_queue()
client.list_groups()
client.delete_app(APP)
wait_until_deployed()
try:
    client.get_app(APP)
    raise AssertionError("the app is still there")
except NotFoundError:
    pass
assert ended.wait(PATIENCE), "the end of the app is told"
kinds = {event.event_type for event in events}
for kind in ["api_post_event", "deployment_info", "deployment_step_success", "deployment_success", "status_update_event"]:
    assert kind in kinds, (kind, kinds)
