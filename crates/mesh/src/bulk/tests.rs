//! Two nodes on loopback: real sockets, TLS and yamux, a pool that asks and a scripted holder.

use super::*;
use crate::framing::{read_frame, write_frame};
use crate::nar_client::{NarPiece, NarPool, NarRequestError};
use crate::swarm;
use futures::{AsyncWriteExt, StreamExt};
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::swarm::dial_opts::DialOpts as SwarmDial;
use narmesh_protocol::wire::{NarReply, NarRequest, Referral};
use narmesh_protocol::{HashPart, NarHash};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes of every NAR here.
const NAR: [u8; 128] = [7; 128];

fn request() -> NarRequest {
    let (hash_part, nar_hash) = (HashPart([1; 20]), NarHash([2; 32]));
    let (nar_size, referral) = (NAR.len() as u64, Referral::Declined);
    NarRequest {
        hash_part,
        nar_hash,
        nar_size,
        offset: 0,
        end: nar_size,
        accept_zstd: false,
        passes_on: false,
        referral,
    }
}

/// How a holder answers one request.
type Answer = fn(usize) -> Vec<Vec<u8>>;

/// A node: its swarm runs in a task.
struct Node {
    id: PeerId,
    bulk: Bulk,
    connection_rates: ConnectionRates,
    asks_to_dial: mpsc::Receiver<AskToDial>,
    addresses: mpsc::Receiver<Multiaddr>,
    dials: mpsc::Sender<(PeerId, Multiaddr)>,
    answered: Arc<AtomicUsize>,
    /// Streams that others opened and that have not ended.
    serving: Arc<AtomicUsize>,
}

impl Node {
    fn start(keys: &Keypair, allowed: &[PeerId], answer: Answer) -> Self {
        let built = swarm::build(keys, allowed.iter().copied(), 16).unwrap();
        let swarm::Built { mut swarm, bulk, bulk_arrivals: arrivals, .. } = built;
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let statistics = Arc::new(PeerStatistics::default());
        statistics.retain_only(allowed.iter().copied());
        let (sender, asks_to_dial) = mpsc::channel(16);
        let answered = Arc::new(AtomicUsize::new(0));
        let serving = Arc::new(AtomicUsize::new(0));
        let (count, open) = (Arc::clone(&answered), Arc::clone(&serving));
        let incoming = Box::new(move |incoming: Incoming| {
            let (count, open) = (Arc::clone(&count), Arc::clone(&open));
            open.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                serve(incoming, answer, count).await;
                open.fetch_sub(1, Ordering::Relaxed);
            });
        });
        let connection_rates = ConnectionRates::clone(&swarm.behaviour().connection_rates);
        let rates = connection_rates.clone();
        let surroundings = Surroundings { statistics, asks_to_dial: sender, connection_rates: rates, incoming };
        tokio::spawn(bulk.clone().run(surroundings, arrivals));
        let (dials, mut wanted) = mpsc::channel::<(PeerId, Multiaddr)>(1);
        let (address_sender, addresses) = mpsc::channel(8);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::NewListenAddr { address, .. } => drop(address_sender.try_send(address)),
                        SwarmEvent::IncomingConnectionError { error, .. } => {
                            assert!(crate::transport::is_handed_over(&error), "{error}");
                        }
                        _ => {}
                    },
                    Some((peer, address)) = wanted.recv() => {
                        swarm.dial(SwarmDial::peer_id(peer).addresses(vec![address]).build()).unwrap();
                    }
                }
            }
        });
        let id = keys.public().to_peer_id();
        Self { id, bulk, connection_rates, asks_to_dial, addresses, dials, answered, serving }
    }

    async fn wait_until_connected(&self, peer: PeerId) {
        while self.bulk.0.table.lock().peers.get(&peer).is_none_or(|known| known.control.is_empty()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

async fn serve(incoming: Incoming, answer: Answer, answered: Arc<AtomicUsize>) {
    let mut stream = incoming.stream;
    while let Ok(Some(frame)) = read_frame(&mut stream, NarRequest::BYTES_MAX).await {
        NarRequest::decode(&frame).unwrap();
        for bytes in answer(answered.fetch_add(1, Ordering::Relaxed)) {
            if bytes.is_empty() || stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::new();
    futures::executor::block_on(write_frame(&mut framed, bytes)).unwrap();
    framed
}

fn head(reply: NarReply) -> Vec<u8> {
    frame(&reply.encode().unwrap())
}

fn whole() -> Vec<u8> {
    [head(NarReply::Body { zstd: false }), frame(&NAR), vec![0; 5]].concat()
}

/// An asker that dials a holder.
async fn pair(answer: Answer) -> (Node, Node) {
    let [asker, holder] = [(); 2].map(|()| Keypair::generate_ed25519());
    let mut there = Node::start(&holder, &[asker.public().to_peer_id()], answer);
    let here = Node::start(&asker, &[there.id], |_| vec![whole()]);
    let address = there.addresses.recv().await.unwrap();
    here.dials.send((there.id, address)).await.unwrap();
    here.wait_until_connected(there.id).await;
    (here, there)
}

/// Everything that the holder says, and the body.
async fn ask(pool: &NarPool, peer: PeerId) -> (Vec<NarPiece>, Vec<u8>) {
    let mut source = pool.request(peer, request()).await.unwrap();
    let (mut pieces, mut body) = (Vec::new(), Vec::new());
    loop {
        let piece = source.next(&mut body, NAR.len() as u64).await.unwrap();
        pieces.push(piece.clone());
        if matches!(piece, NarPiece::Absent | NarPiece::Complete | NarPiece::Failed) {
            return (pieces, body);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_requests_at_once_on_a_new_connection_never_fail() {
    const ROUNDS: usize = 167;
    let (here, there) = pair(|_| vec![whole()]).await;
    let pool = NarPool::new(here.bulk.clone());
    for _ in 0..ROUNDS {
        let requests = (0..60).map(|_| async {
            let (_, body) = ask(&pool, there.id).await;
            assert_eq!(body, NAR);
        });
        futures::stream::iter(requests).buffer_unordered(16).collect::<()>().await;
        // The next ones find no connection.
        pool.forget(&there.id);
    }
    assert_eq!(there.answered.load(Ordering::Relaxed), ROUNDS * 60, "each was asked once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_connection_of_a_peer_that_connects_too_often_is_not_taken() {
    let (here, there) = pair(|_| vec![whole()]).await;
    there.wait_until_connected(here.id).await;
    while there.connection_rates.try_count(moment(), here.id) {}
    assert_eq!(there.connection_rates.take_flooders(), [here.id]);
    // The dialler sees its connection a moment before the other side closes it.
    drop(here.bulk.connect(there.id).await);
    let is_named = || there.connection_rates.take_flooders() == [here.id];
    while !is_named() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!there.bulk.is_connected(&here.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dialled_side_has_the_dialler_dial_and_both_use_that_connection() {
    let (here, mut there) = pair(|_| vec![whole()]).await;
    there.wait_until_connected(here.id).await;
    let pool = NarPool::new(there.bulk.clone());
    let asked = tokio::spawn({
        let (pool, peer) = (pool.clone(), here.id);
        async move { ask(&pool, peer).await }
    });
    let Some(AskToDial { peer, .. }) = there.asks_to_dial.recv().await else { panic!("the dialler is asked") };
    assert_eq!(peer, here.id);
    assert!(here.bulk.dial_for(there.id));
    assert_eq!(asked.await.unwrap().1, NAR);
    // The other direction uses the same connection.
    let back = NarPool::new(here.bulk.clone());
    assert!(back.is_connected(&there.id));
    assert_eq!(ask(&back, there.id).await.1, NAR);
    assert_eq!(here.bulk.0.table.lock().peers[&there.id].connections.len(), 1);
    assert_eq!(pool.line(&here.id).in_flight, 0);
    assert!(pool.line(&here.id).received_bytes > 128);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_is_refused_fails_at_once_and_the_next_request_tries_again() {
    let (here, mut there) = pair(|_| vec![whole()]).await;
    there.wait_until_connected(here.id).await;
    let pool = NarPool::new(there.bulk.clone());
    for _ in 0..2 {
        let asked = tokio::spawn({
            let (pool, peer) = (pool.clone(), here.id);
            async move { pool.request(peer, request()).await }
        });
        let Some(AskToDial { number, .. }) = there.asks_to_dial.recv().await else { panic!("the dialler is asked") };
        there.bulk.on_dial_refused(here.id, number - 1, "of another dial");
        assert!(!asked.is_finished());
        there.bulk.on_dial_refused(here.id, number, "no");
        assert!(matches!(asked.await.unwrap(), Err(NarRequestError::NotConnected(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_request_is_told_its_place_and_one_in_no_queue_is_asked_again() {
    let (here, there) = pair(|number| match number {
        0 => vec![head(NarReply::NotNow { place: 0, ask_again_ms: 1 })],
        _ => vec![
            head(NarReply::NotNow { place: 2, ask_again_ms: 2_000 }),
            head(NarReply::NotNow { place: 1, ask_again_ms: 2_000 }),
            whole(),
        ],
    })
    .await;
    let (pieces, body) = ask(&NarPool::new(here.bulk.clone()), there.id).await;
    let places: Vec<_> = pieces
        .iter()
        .filter_map(|piece| match piece {
            NarPiece::NotNow { place, .. } => Some(*place),
            NarPiece::Others(_) | NarPiece::Data | NarPiece::Absent | NarPiece::Complete | NarPiece::Failed => None,
        })
        .collect();
    assert_eq!((places, body), (vec![0, 2, 1], NAR.to_vec()));
    assert_eq!(there.answered.load(Ordering::Relaxed), 2);
}

/// Such a holder would keep us busy for as long as a client waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_that_says_not_now_without_a_pause_breaks_the_protocol() {
    let (here, there) = pair(|_| vec![head(NarReply::NotNow { place: 1, ask_again_ms: 2_000 }); 1_000]).await;
    let mut source = NarPool::new(here.bulk.clone()).request(there.id, request()).await.unwrap();
    let mut words = 0;
    let error = loop {
        match source.next(&mut Vec::new(), 128).await {
            Ok(piece) => assert_eq!(piece, NarPiece::NotNow { place: 1 }),
            Err(error) => break error,
        }
        words += 1;
    };
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!((64..200).contains(&words), "{words} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_ends_before_its_answer_is_asked_again_on_another_and_a_holder_that_never_answers_is_left() {
    // An answer without bytes closes the stream.
    let (here, there) = pair(|number| if number < 2 { vec![Vec::new()] } else { vec![whole()] }).await;
    assert_eq!(ask(&NarPool::new(here.bulk.clone()), there.id).await.1, NAR);
    let (here, there) = pair(|_| vec![Vec::new()]).await;
    let mut source = NarPool::new(here.bulk.clone()).request(there.id, request()).await.unwrap();
    let error = source.next(&mut Vec::new(), 128).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(there.answered.load(Ordering::Relaxed), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_body_is_handed_over_up_to_where_it_breaks() {
    let (here, there) = pair(|number| {
        let body = [head(NarReply::Body { zstd: false }), frame(&NAR[..100])].concat();
        match number {
            0 => vec![body, vec![0, 0, 0, 0, 1]],
            1 => vec![body, Vec::new()],
            2 => vec![[body, frame(&NAR)].concat()],
            _ => vec![[body, vec![0xff; 4]].concat()],
        }
    })
    .await;
    let pool = NarPool::new(here.bulk.clone());
    let (pieces, body) = ask(&pool, there.id).await;
    assert_eq!((pieces.last(), body.len()), (Some(&NarPiece::Failed), 100));
    for (kind, kept) in [
        (std::io::ErrorKind::UnexpectedEof, 100),
        (std::io::ErrorKind::InvalidData, 0),
        (std::io::ErrorKind::InvalidData, 0),
    ] {
        let mut source = pool.request(there.id, request()).await.unwrap();
        let mut body = Vec::new();
        let error = loop {
            let before = body.len();
            match source.next(&mut body, (NAR.len() - before) as u64).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), kind);
        assert!(source.has_begun());
        // What came in one piece with what broke the protocol may be handed over or not.
        assert!(body.len() >= kept && body.len() <= 100, "{}", body.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_connection_ends_with_its_control_connection_and_none_is_dialled_without_one() {
    let (here, there) = pair(|_| vec![whole()]).await;
    let pool = NarPool::new(here.bulk.clone());
    ask(&pool, there.id).await;
    let id = *here.bulk.0.table.lock().peers[&there.id].control.keys().next().unwrap();
    here.bulk.on_control_closed(&there.id, id);
    assert!(!pool.is_connected(&there.id));
    assert!(matches!(pool.request(there.id, request()).await, Err(NarRequestError::NotConnected(_))));
}

/// Otherwise a task that waits on a stream would wait for ever, and the stream would count as one of its peer's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_bulk_connection_that_we_close_end() {
    let (here, there) = pair(|_| vec![whole()]).await;
    there.wait_until_connected(here.id).await;
    let pool = NarPool::new(here.bulk.clone());
    ask(&pool, there.id).await;
    assert_eq!(there.serving.load(Ordering::Relaxed), 1, "the stream is kept for the next request");
    let id = *there.bulk.0.table.lock().peers[&here.id].control.keys().next().unwrap();
    there.bulk.on_control_closed(&here.id, id);
    let all_ended = async {
        while there.serving.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all_ended).await.expect("its streams end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_connection_without_a_control_connection_is_closed() {
    let [friend, stranger, holder] = [(); 3].map(|()| Keypair::generate_ed25519());
    let mut there = Node::start(&holder, &[friend.public().to_peer_id()], |_| vec![whole()]);
    let address = there.addresses.recv().await.unwrap();
    for keys in [friend, stranger] {
        let dialler = Node::start(&keys, &[there.id], |_| vec![whole()]);
        let mut muxer = dialler.bulk.dial_address(there.id, address.clone()).await.unwrap();
        let ended = std::future::poll_fn(|context| {
            let muxer = std::pin::Pin::new(&mut muxer);
            libp2p::core::muxing::StreamMuxer::poll_inbound(muxer, context)
        });
        assert!(ended.await.is_err(), "nothing is asked over it");
    }
    assert_eq!(there.answered.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_third_connection_that_one_side_dialled_closes_the_oldest() {
    let (here, there) = pair(|_| vec![whole()]).await;
    there.wait_until_connected(here.id).await;
    let open = || {
        let table = there.bulk.0.table.lock();
        table.peers[&here.id].connections.iter().map(|connection| connection.id).collect::<Vec<_>>()
    };
    let mut seen: Vec<Vec<u64>> = Vec::new();
    for _ in 0..4 {
        let before = open();
        assert!(here.bulk.dial_for(there.id));
        // The dialler closes its oldest by itself: that one may be gone before the new one is there.
        while open().last() <= before.last() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while here.bulk.0.table.lock().peers[&there.id].dial.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        seen.push(open());
        let dialled = here.bulk.0.table.lock().peers[&there.id].connections.iter().filter(|one| one.is_open()).count();
        assert!(dialled <= PER_SIDE_MAX, "{dialled} are open at the side that dials them");
    }
    assert!(seen.iter().all(|open| open.len() <= PER_SIDE_MAX), "{seen:?}");
    assert_eq!(seen[3].len(), 2);
    assert!(seen[3][0] > seen[1][0], "the oldest went: {seen:?}");
}
