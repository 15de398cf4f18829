//! Tests who counts as the client, with a proxy in front of the gateway and without.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use narmesh_http_gateway::{Caller, GatewayLimits, ListenerRole, Network, TrustedProxies};

use crate::client::{TestGateway, nar_url, part, pattern};
use crate::hostile::TwoTokens;
use crate::memory::{MemorySubstituter, Nar};

fn substituter() -> MemorySubstituter {
    MemorySubstituter {
        asked: HashMap::from([(part(1), Some("narinfo\n".into()))]),
        nars: HashMap::from([(nar_url(1, 1000), Nar::good(pattern(1000)))]),
        ..MemorySubstituter::default()
    }
}

async fn gateway_behind(proxy: &str, role: ListenerRole) -> TestGateway {
    let networks = vec![Network::parse(proxy).unwrap()];
    let role = ListenerRole { trusted_proxies: TrustedProxies { networks, unix: false }, ..role };
    TestGateway::start_with(substituter(), role, GatewayLimits::default()).await
}

/// Who asks for a narinfo and for a NAR with this header.
async fn callers(gateway: &TestGateway, header: &str) -> Vec<Option<Caller>> {
    for path in [format!("/{}.narinfo", part(1)), format!("/{}", nar_url(1, 1000))] {
        assert_eq!(gateway.get_with(&path, &[header]).await.status, 200);
    }
    std::mem::take(&mut *gateway.substituter.callers.lock().unwrap())
}

#[tokio::test]
async fn a_client_is_who_the_kernel_says_or_a_believed_proxy() {
    let us = Some(Caller::User(rustix::process::getuid().as_raw()));
    let address = |text: &str| Some(Caller::Address(text.parse::<IpAddr>().unwrap()));
    let believed = gateway_behind("127.0.0.0/8", ListenerRole::local()).await;
    for (header, caller) in [
        ("X-Forwarded-For: 203.0.113.9, 198.51.100.7", address("198.51.100.7")),
        ("X-Forwarded-For: 2001:db8::7", address("2001:db8::")),
        ("X-Forwarded-For: nonsense", us),
        ("Forwarded: for=198.51.100.7", us),
    ] {
        assert_eq!(callers(&believed, header).await, [caller; 2], "{header}");
    }
    let not_believed = gateway_behind("192.0.2.1", ListenerRole::local()).await;
    assert_eq!(callers(&not_believed, "X-Forwarded-For: 198.51.100.7").await, [us; 2]);
}

#[tokio::test]
async fn each_client_of_a_proxy_has_its_own_tries_of_tokens() {
    let role = ListenerRole { access: Some(Arc::new(TwoTokens)), ..ListenerRole::local() };
    let gateway = gateway_behind("127.0.0.1", role).await;
    let ask = async |client: &str, token: &str| {
        let headers = [&*format!("X-Forwarded-For: {client}"), &format!("Authorization: Bearer {token}")];
        gateway.get_with("/healthz", &headers).await.status
    };
    for count in 0..12 {
        // What a client writes itself makes it nobody else.
        ask(&format!("203.0.113.{count}, 198.51.100.7"), "bad").await;
    }
    assert_eq!(ask("198.51.100.7", "good").await, 429);
    assert_eq!(ask("198.51.100.8", "good").await, 200);
}
