//! Keys read what they print, also as the keys of a JSON object.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use mesonet_model::{EndpointKey, FrameworkId, Protocol, ServiceKey, TaskId, TaskKey, Vip, VipLabel};
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u16; 8]>().prop_map(IpAddr::from)]
}

/// Addresses that a virtual one can have: those of one host.
fn unicast_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1_u8..224, any::<[u8; 3]>()).prop_map(|(first, [a, b, c])| IpAddr::from([first, a, b, c])),
        (0x2000_u16..0xfe00, any::<[u16; 7]>())
            .prop_map(|(first, [a, b, c, d, e, f, g])| IpAddr::from([first, a, b, c, d, e, f, g])),
    ]
}

/// Service keys as they come from labels: that is the only way in which users make them.
fn service_key() -> impl Strategy<Value = ServiceKey> {
    let label = prop_oneof![
        "/?[a-zA-Z0-9._-]{0,9}[a-z][a-zA-Z0-9._/-]{0,9}:[1-9][0-9]{0,3}",
        (unicast_address(), 1..=u16::MAX).prop_map(|(address, port)| format!("{address}:{port}")),
        (unicast_address(), 1..=u16::MAX)
            .prop_map(|(address, port)| SocketAddr::new(address, port).to_string()),
    ];
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    (label, protocol, "[ -~]{0,20}").prop_map(|(label, protocol, framework)| {
        VipLabel::parse(&label).expect("a label of this form").service_key(protocol, &framework)
    })
}

/// Frameworks get their ids from the master, tasks from the framework: any text without a line break.
fn task_key() -> impl Strategy<Value = TaskKey> {
    ("[a-z0-9-]{1,20}", "[ -~]{1,30}")
        .prop_map(|(framework, task)| TaskKey::new(FrameworkId::new(framework), TaskId::new(task)))
}

fn endpoint_key() -> impl Strategy<Value = EndpointKey> {
    (service_key(), task_key(), address(), any::<u16>()).prop_map(|(service, task, address, port)| {
        EndpointKey { service, task, address: SocketAddr::new(address, port) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn service_keys_read_what_they_print(key in service_key()) {
        prop_assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn task_keys_read_what_they_print(key in task_key()) {
        prop_assert_eq!(key.to_string().parse(), Ok(key));
    }

    #[test]
    fn endpoint_keys_read_what_they_print(key in endpoint_key()) {
        prop_assert_eq!(key.to_string().parse(), Ok(key.clone()));
        let map = BTreeMap::from([(key, 1)]);
        let json = serde_json::to_string(&map).expect("text keys");
        prop_assert_eq!(serde_json::from_str::<BTreeMap<EndpointKey, u32>>(&json).expect("own JSON"), map);
    }

    #[test]
    fn named_services_have_a_domain_name(key in service_key()) {
        if let Vip::Named { name, .. } = &key.vip {
            prop_assert!(name.split('.').all(|label| (1..=63).contains(&label.len())));
        }
    }
}
