//! A process without free descriptors. Alone in its process, since the limit is the process's.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_lb_dataplane::{Dataplane as _, Metrics, Proxy};
use mesonet_lb_plan::{EndpointCount, EndpointId, EndpointSpec, Op, RouteState};
use mesonet_model::{FrameworkId, ServiceKey, TaskId, TaskKey};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(60);

/// Enough for the test, and few enough to use up.
const DESCRIPTORS: u64 = 256;

/// An endpoint that sends a letter to whoever connects, and ends.
fn serve() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The proxy may have gone.
            let _gone = stream.write_all(b"a");
        }
    });
    address
}

fn answer(client: Socket, address: SocketAddr) -> std::io::Result<String> {
    client.connect(&address.into())?;
    let mut stream = TcpStream::from(client);
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// How many this process has open.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("the list of descriptors").count()
}

fn client() -> Socket {
    Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket")
}

#[tokio::test]
async fn no_endpoint_is_blamed_where_this_process_has_no_descriptor_left() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), ..limit }).expect("lower");
    let mut proxy = Proxy::start(&Metrics::new(&prometheus::Registry::new()));
    let service: ServiceKey = "tcp/web@marathon:80".parse().expect("a key");
    let task = TaskKey::new(FrameworkId::new("f"), TaskId::new("t"));
    let endpoint = EndpointId { task, address: serve() };
    let vip = Ipv4Addr::new(127, 11, 254, 1);
    let address = TcpListener::bind((vip, 0)).and_then(|socket| socket.local_addr()).expect("free");
    let ops = [
        Op::AddEndpoint {
            service: service.clone(),
            endpoint: endpoint.clone(),
            spec: EndpointSpec { state: RouteState::Ready, weight: 1 },
        },
        Op::OpenListener { service: service.clone(), address },
    ];
    assert!(proxy.apply(&ops).await.is_empty());
    let idle = descriptors();
    assert_eq!(answer(client(), address).expect("served"), "a");
    let begun = Instant::now();
    while descriptors() > idle {
        assert!(begun.elapsed() < PATIENCE, "the connection stays");
        thread::yield_now();
    }
    let once = EndpointCount { connections: 1, active: 0, failures: 0 };
    assert_eq!(proxy.count(&service, &endpoint), once);

    let (unlucky, lucky) = (client(), client());
    let mut others: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    // For the client, and none for the endpoint.
    drop(others.pop());
    let error = answer(unlucky, address).expect_err("nobody can be connected");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.count(&service, &endpoint), once);
    assert_eq!(proxy.take_failed(), [].into());
    drop(others);
    assert_eq!(answer(lucky, address).expect("served"), "a");
}
