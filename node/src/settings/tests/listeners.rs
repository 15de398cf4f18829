//! What `[[gateway.listener]]` may say.

use super::*;

#[test]
fn listeners_are_of_every_role_where_only_this_machine_reaches_them() {
    let listener =
        |address: &str, role: &str| format!("[[gateway.listener]]\naddress = '{address}'\nrole = '{role}'\n");
    let text: String = [
        listener("0.0.0.0:7282", "serve"),
        listener("127.0.0.1:7283", "site"),
        listener("[::]:7283", "site") + "tokens_file = 'tokens'\n",
        listener("[::]:7284", "site") + "tls_certificate_file = 'c'\ntls_key_file = 'k'\ntls_client_ca_file = 'ca'\n",
        listener("[::1]:0", "local"),
        listener("[::1]:0", "local"),
        listener("./sock", "site"),
        listener("/run/narmesh/sock", "local") + "host_names = ['*']\nconnections_max = 16384\n",
        listener("127.0.0.1:7286", "serve")
            + "connections_max = 9\nconnections_per_client_max = 16384\nidle_timeout_ms = 1000\ntrusted_proxies = ['10.0.0.0/8', '::1']\n",
        listener("./proxied", "serve") + "trusted_proxies = ['unix', '10.0.0.0/8']\n",
        // Who reaches it is not known before the start.
        listener("systemd:a cache", "site") + "tls_certificate_file = 'c'\ntls_key_file = 'k'\n",
    ]
    .concat();
    let listeners = check(&text).unwrap().gateway.listeners;
    let is_on_the_network: Vec<_> = listeners.iter().map(ListenerSettings::is_on_the_network).collect();
    assert_eq!(is_on_the_network, [true, false, true, true, false, false, false, false, false, false, false]);
    let warned: Vec<_> = (0..).zip(&listeners).filter(|(at, it)| it.warn_of_plain_tokens(*at).is_some()).collect();
    assert!(matches!(warned[..], [(2, _)]), "{warned:?}");
    let tls = listeners[3].tls.clone().unwrap();
    assert_eq!(tls.certificate, Path::new("/etc/narmesh/c"));
    let handed = &listeners[10];
    assert_eq!(handed.address, ListenerAddress::Systemd("a cache".to_owned()));
    let at = |address| handed.at(10, address).map(|found| found.address).map_err(|error| error.to_string());
    let loopback = ListenerAddress::Tcp("127.0.0.1:7282".parse().unwrap());
    assert_eq!(at(loopback.clone()), Ok(loopback));
    let refused = at(ListenerAddress::Tcp("0.0.0.0:7282".parse().unwrap())).unwrap_err();
    assert!(refused.contains("gateway.listener[10].role = \"site at 0.0.0.0:7282\""), "{refused}");
    let refused = at(ListenerAddress::Unix("/run/x".into())).unwrap_err();
    assert!(refused.contains("gateway.listener[10].tls_certificate_file"), "{refused}");
    assert_eq!(listeners[6].address, ListenerAddress::Unix("/etc/narmesh/./sock".into()));
    let proxies = |at: usize| (listeners[at].trusted_proxies.unix, listeners[at].trusted_proxies.networks.len());
    assert_eq!([0, 8, 9].map(proxies), [(false, 0), (false, 2), (true, 1)]);
    let limits = |it: &ListenerSettings| (it.connections_max, it.connections_per_client_max, it.idle_timeout.as_secs());
    let expected = [(256, 128, 300), (16_384, 8_192, 300), (9, 16_384, 1)];
    assert_eq!([0, 7, 8].map(|at| limits(&listeners[at])), expected);
}
