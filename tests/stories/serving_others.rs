//! Listeners for others: machines without narmesh, which get what this machine offers and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use narmesh_tests::{
    NarInfoText, NixStoreFixture, TestMesh, TestNode, finish, free_address, get, hash_part, promised, request,
    scratch_dir, wait_until, with_gateway,
};

/// What is offered follows a change within this.
const FOLLOWED: Duration = Duration::from_secs(2);

fn listener(address: &str, role: &str) -> String {
    format!("[[gateway.listener]]\naddress = '{address}'\nrole = '{role}'\n")
}

/// `GET path` over a Unix socket: the status and the rest of the answer.
fn get_over(socket: &Path, path: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

/// All that a listener could give of a path.
fn requests(node: &TestNode, path: &str) -> Vec<String> {
    let (part, narinfo) = (hash_part(path), node.get_narinfo(path).text());
    let field = |name: &str| narinfo.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let (url, nar_hash) = (field("URL:"), field("NarHash: sha256:"));
    vec![
        format!("/{part}.narinfo"),
        format!("/{url}"),
        format!("/nar/{nar_hash}.nar?hash={part}"),
        format!("/nar/{part}-{nar_hash}.nar"),
        format!("/{part}.ls"),
        format!("/serve/{part}/"),
        format!("/log/{}", field("Deriver:")),
    ]
}

#[track_caller]
fn assert_statuses(address: SocketAddr, requests: &[String], status: u16) {
    for path in requests {
        assert_eq!(get(address, path).unwrap().status, status, "{path}");
    }
}

#[test]
fn a_machine_without_narmesh_gets_what_is_offered_and_nothing_else() {
    let mesh = TestMesh::new();
    let [mut node, mut peer] = ["node", "peer"].map(|name| mesh.node(name));
    let serve = free_address();
    node.config.exclude = vec!["mesh-lib-*".to_owned()];
    node.config.more = listener(&serve.to_string(), "serve");
    let [noisy, lib, shapes] = ["noisy", "lib", "shapes"].map(|name| node.store.build_one(name));
    let of_the_mesh = peer.store.build_one("fod");
    TestMesh::start_all(&mut [&mut node, &mut peer]);
    peer.wait_all_advertised(&[&node]);
    wait_until("both are offered", promised(FOLLOWED), || {
        [&noisy, &shapes].iter().all(|path| get(serve, &format!("/{}.narinfo", hash_part(path))).unwrap().status == 200)
    });

    let scratch = scratch_dir("client");
    let client = NixStoreFixture::chroot(scratch.path());
    let keys = [node.builder_key()];
    client.realise(&[noisy.clone(), shapes.clone()], serve, &keys).expect_success("nix-store --realise");
    client.verify_contents();
    let fresh = scratch_dir("reader");
    let reader = NixStoreFixture::chroot(fresh.path());
    let mut log = reader.nix("nix");
    log.args(["--extra-experimental-features", "nix-command", "log", &noisy]);
    let said = finish(with_gateway(&mut log, serve, &keys)).expect_success("nix log");
    assert!(said.contains("what the builder said"), "{said}");

    let (offered, private) = (requests(&node, &noisy), requests(&node, &lib));
    assert_statuses(node.gateway(), &private, 200);
    assert_statuses(serve, &offered, 200);
    assert_statuses(serve, &private, 404);
    let part = request(serve, "GET", &offered[1], &[("Range", "bytes=8-")]).unwrap().finish();
    assert_eq!(part.status, 206);
    // Nothing of the mesh, and nothing of the operator's.
    assert_eq!(node.get_narinfo(&of_the_mesh).status, 200);
    assert_statuses(serve, &[format!("/{}.narinfo", hash_part(&of_the_mesh)), "/metrics".to_owned()], 404);
    let named = |host: &str| request(serve, "GET", "/healthz", &[("Host", host)]).unwrap().status;
    assert_eq!((named("192.0.2.7:1"), named("rebound.example")), (200, 403));

    // The predicate is asked anew each time.
    node.narmesh(&["serve", "off"]).expect_success("serve off");
    assert_statuses(serve, &offered, 404);
    node.narmesh(&["serve", "auto"]).expect_success("serve auto");
    wait_until("it is offered again", promised(FOLLOWED), || get(serve, &offered[0]).unwrap().status == 200);
    assert_statuses(serve, &offered, 200);
    node.config.exclude.push("mesh-noisy-*".to_owned());
    node.write_config();
    node.narmesh(&["reload"]).expect_success("reload");
    assert_statuses(serve, &offered, 404);
}

#[test]
fn a_site_gives_the_mesh_as_well_and_what_is_private_to_nobody() {
    let mesh = TestMesh::new();
    let [mut node, mut peer] = ["node", "peer"].map(|name| mesh.node(name));
    let site = free_address();
    let sockets = ["site.sock", "serve.sock", "local.sock"].map(|name| mesh.path().join(name));
    node.config.exclude = vec!["mesh-lib-*".to_owned()];
    node.config.more = listener(&site.to_string(), "site");
    for (socket, role) in sockets.iter().zip(["site", "serve", "local"]) {
        node.config.more += &listener(&socket.display().to_string(), role);
    }
    let [lib, own] = ["lib", "shapes"].map(|name| node.store.build_one(name));
    // The peer would give what is private here.
    let [of_the_mesh, _] = ["fod", "lib"].map(|name| peer.store.build_one(name));
    TestMesh::start_all(&mut [&mut node, &mut peer]);
    peer.wait_all_advertised(&[&node]);
    let narinfo = |path: &str| format!("/{}.narinfo", hash_part(path));
    wait_until("it is offered", promised(FOLLOWED), || get(site, &narinfo(&own)).unwrap().status == 200);

    let scratch = scratch_dir("client");
    let client = NixStoreFixture::chroot(scratch.path());
    let keys = [node.builder_key(), peer.builder_key()];
    client.realise(&[of_the_mesh.clone(), own.clone()], site, &keys).expect_success("nix-store --realise");
    assert_statuses(site, &requests(&node, &lib), 404);

    let [by_site, by_serve, by_local] = sockets.each_ref();
    for (path, statuses) in [(&own, [200, 200, 200]), (&of_the_mesh, [200, 404, 200]), (&lib, [404, 404, 200])] {
        let got = [by_site, by_serve, by_local].map(|socket| get_over(socket, &narinfo(path)).0);
        assert_eq!(got, statuses, "{path}");
    }
    assert!(get_over(by_local, "/metrics").1.contains("narmesh_others_gateway_requests_total"));
    let mode = |socket: &Path| std::fs::metadata(socket).unwrap().permissions().mode() & 0o777;
    assert_eq!([by_site, by_serve, by_local].map(|socket| mode(socket)), [0o660, 0o666, 0o660]);
    assert!(node.terminate().success());
    assert!(sockets.iter().all(|socket| !socket.exists()), "removed at the end");
}

/// As through the gateway of the machine itself: a false 404 would have the client build what the peer holds.
#[test]
fn a_site_gives_of_others_what_is_damaged_here() {
    let mesh = TestMesh::new();
    let [mut node, mut good] = ["node", "good"].map(|name| mesh.node(name));
    let [site, serve] = [(); 2].map(|()| free_address());
    node.config.more = listener(&site.to_string(), "site") + &listener(&serve.to_string(), "serve");
    let lib = node.store.build_one("lib");
    assert_eq!(good.store.build_one("lib"), lib);
    TestMesh::start_all(&mut [&mut node, &mut good]);
    good.wait_all_advertised(&[&node]);
    let narinfo = format!("/{}.narinfo", hash_part(&lib));
    wait_until("it is offered", promised(FOLLOWED), || get(site, &narinfo).unwrap().status == 200);
    node.store.corrupt_file(&lib, "lib/libmesh.txt");
    let url = |address| {
        let got = get(address, &narinfo).unwrap();
        (got.status == 200).then(|| NarInfoText::parse(&got.text()).url)
    };
    // Whoever asks first may find out what is wrong with it.
    drop(get(site, &url(site).expect("the narinfo of an offered path")));
    for _ in 0..20 {
        let url = url(site).expect("the peer holds it");
        let body = get(site, &url).unwrap();
        assert!(body.status == 200 && body.complete, "{}", body.status);
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_until("a serve listener gives only of its own", promised(FOLLOWED), || url(serve).is_none());
}

#[test]
fn clients_of_a_listener_with_tokens_need_one_that_counts() {
    let mesh = TestMesh::new();
    let [mut node, mut peer] = ["node", "peer"].map(|name| mesh.node(name));
    let site = free_address();
    node.config.more = listener(&site.to_string(), "site") + "tokens_file = 'tokens'\n";
    let of_the_mesh = peer.store.build_one("fod");
    let own = node.store.build_one("shapes");
    TestMesh::start_all(&mut [&mut node, &mut peer]);
    peer.wait_all_advertised(&[&node]);
    let narinfo = format!("/{}.narinfo", hash_part(&of_the_mesh));
    let ask = |authorization: &str| request(site, "GET", &narinfo, &[("Authorization", authorization)]).unwrap().status;
    assert_statuses(site, &[narinfo.clone(), "/nix-cache-info".to_owned(), "/healthz".to_owned()], 401);

    let old = node.narmesh(&["token", "add", "old", "--until", "2099-01-31"]).expect_success("token add");
    // Its time is over by now.
    let tokens = node.dir().join("tokens");
    std::fs::write(&tokens, std::fs::read_to_string(&tokens).unwrap().replace("2099-01-31", "2020-01-31")).unwrap();
    let narrow = node.narmesh(&["token", "add", "guest", "--own-store"]).expect_success("token add --own-store");
    let token = node.narmesh(&["token", "add", "ci"]).expect_success("token add");
    node.narmesh(&["token", "add", "ci"]).expect_failure("a second token of that name");
    let bearer = format!("Bearer {token}");
    wait_until("the daemon knows the token", promised(FOLLOWED), || ask(&bearer) == 200);
    let own_narinfo = format!("/{}.narinfo", hash_part(&own));
    let read_narrowly =
        |path: &str| request(site, "GET", path, &[("Authorization", &format!("Bearer {narrow}"))]).unwrap().status;
    wait_until("the own path is offered", promised(FOLLOWED), || read_narrowly(&own_narinfo) == 200);
    assert_eq!(["/nix-cache-info", &narinfo].map(read_narrowly), [200, 404], "the last one comes from the peer");
    assert_eq!(ask(&format!("Bearer {old}")), 401, "its time is over");
    let listed = node.narmesh(&["token", "list"]).expect_success("token list");
    assert!(listed.contains("guest  own store alone\n"), "{listed}");
    assert!(
        listed.contains("ci") && listed.contains("old  counted until 2020") && !listed.contains(&token),
        "{listed}"
    );
    let file = std::fs::read_to_string(&tokens).unwrap();
    assert!(!file.contains(&token) && !node.log().contains(&token));

    let scratch = scratch_dir("client");
    let client = NixStoreFixture::chroot(scratch.path());
    let netrc = scratch.path().join("netrc");
    std::fs::write(&netrc, format!("machine 127.0.0.1 login ci password {token}\n")).unwrap();
    let realise = |netrc: &Path| {
        let mut command = client.nix("nix-store");
        command.args(["--realise", &of_the_mesh, "--option", "max-jobs", "0", "--option", "netrc-file"]).arg(netrc);
        finish(with_gateway(&mut command, site, &[peer.builder_key()]))
    };
    realise(Path::new("/nonexistent")).expect_failure("without a token");
    realise(&netrc).expect_success("with a token from its netrc file");

    node.narmesh(&["token", "revoke", "ci"]).expect_success("token revoke");
    wait_until("the token counts no longer", promised(FOLLOWED), || ask(&bearer) == 401);
    // Guessing is slowed down, for whoever it is at that address.
    wait_until("it may not try any more", promised(FOLLOWED), || ask("Bearer guess") == 429);
}

#[test]
fn a_listener_with_zstd_gives_nix_compressed_nars() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let address = free_address();
    node.config.more = listener(&address.to_string(), "serve") + "zstd = true\n";
    let [middle, shapes] = ["middle", "shapes"].map(|name| node.store.build_one(name));
    node.start();
    let narinfo = |path: &str| format!("/{}.narinfo", hash_part(path));
    wait_until("both are offered", promised(FOLLOWED), || {
        [&middle, &shapes].iter().all(|path| get(address, &narinfo(path)).unwrap().status == 200)
    });
    let told = get(address, &narinfo(&middle)).unwrap().text();
    let field = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let url = field("URL:").unwrap();
    assert!(url.ends_with(".nar.zst") && field("Compression:") == Some("zstd"), "{told}");
    assert!(field("FileHash:").is_none() && field("FileSize:").is_none(), "{told}");
    let plain = node.wait_narinfo(&middle).url;
    let nar = get(node.gateway(), &plain).unwrap().body;
    let compressed = get(address, &format!("/{url}")).unwrap().body;
    assert!(compressed.len() < nar.len() / 4, "{} of {}", compressed.len(), nar.len());
    assert!(zstd::decode_all(&*compressed).unwrap() == nar);
    assert_eq!(get(node.gateway(), &format!("{plain}.zst")).unwrap().status, 404);

    let scratch = scratch_dir("client");
    let client = NixStoreFixture::chroot(scratch.path());
    client.realise(&[middle, shapes], address, &[node.builder_key()]).expect_success("nix-store --realise");
    client.verify_contents();
}

#[test]
fn limits_of_a_listener_are_those_of_its_keys() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    let [few, short] = [free_address(), free_address()];
    node.config.more = listener(&few.to_string(), "serve") + "connections_max = 9\nconnections_per_client_max = 2\n";
    node.config.more += &(listener(&short.to_string(), "serve") + "idle_timeout_ms = 1000\n");
    node.start();
    let open = |address: SocketAddr| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(promised(FOLLOWED))).unwrap();
        write!(stream, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        stream
    };
    let ends = |mut stream: TcpStream| stream.read_to_end(&mut Vec::new()).is_ok();
    let [first, second, third] = [(); 3].map(|()| open(few));
    assert!(ends(first), "one more than it may have closes the one that stood still longest");
    let idle = open(short);
    assert!(ends(idle), "nobody asked anything for a second");
    for mut kept in [second, third] {
        kept.set_nonblocking(true).unwrap();
        let rest = loop {
            match kept.read(&mut [0; 4096]) {
                Ok(0) => break "closed",
                Ok(_) => {}
                Err(_) => break "open",
            }
        };
        assert_eq!(rest, "open");
    }
}

#[test]
fn a_listener_that_would_give_the_mesh_to_the_network_is_refused() {
    let mesh = TestMesh::new();
    let mut node = mesh.node("node");
    for (address, role) in [("0.0.0.0:7282", "site"), ("[::]:7282", "local"), ("192.0.2.1:7282", "site")] {
        node.config.more = listener(address, role);
        node.write_config();
        for command in ["run", "check-config"] {
            let refused = node.narmesh(&[command]);
            assert!(!refused.status.success(), "{command}");
            for word in ["gateway.listener[0].role", &format!("{role} at {address}"), "\"serve\"", "Unix socket"] {
                assert!(refused.stderr.contains(word), "{command}: {word:?} is not in {}", refused.stderr);
            }
        }
    }
}
