//! The HTTP/1.1 port: is it alive, is it ready, its metrics.
//!
//! | path | answer |
//! |---|---|
//! | `/health` | 200 as long as the process answers |
//! | `/ready` | 200 once every shard has recovered and none is fenced; else 503 with the reason |
//! | `/metrics` | Prometheus text: every shard's counters and histograms |

mod io;

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use flowmesh_rt::core::spawn_local;
use flowmesh_rt::net::{Listener, TcpStream};
use flowmesh_rt::time;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};

use crate::router::Router;
use crate::router::message::Detail;
use crate::telemetry::metrics::{self, Scrape};
use crate::telemetry::storage::Storage;
use io::HyperIo;

/// Connections at a time: probes and scrapers.
const CONNECTIONS_MAX: usize = 64;

/// A request, and the wait for the next one on its connection, may take so long.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(30);

/// All headers of a request.
const HEADERS_MAX: usize = 64;

/// After a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What the port knows of the server.
#[derive(Default)]
pub struct Status {
    router: RefCell<Option<Router>>,
    stopping: RefCell<bool>,
    storage: Storage,
}

impl Status {
    /// Every shard has recovered: from now on the server is ready.
    pub fn serving(&self, router: Router) {
        *self.router.borrow_mut() = Some(router);
    }

    /// The server is stopping: no more traffic, please.
    pub fn stopping(&self) {
        *self.stopping.borrow_mut() = true;
    }
}

/// Starts listening, on this core. `storage` is what metrics say about the disk.
///
/// # Errors
/// The address cannot be listened on.
pub fn start(address: SocketAddr, storage: Storage) -> anyhow::Result<Rc<Status>> {
    let listener = Listener::bind(address).context("setting http_addr")?;
    let status = Rc::new(Status { storage, ..Status::default() });
    spawn_local(accept(listener, Rc::clone(&status))).detach();
    Ok(status)
}

async fn accept(listener: Listener, status: Rc<Status>) {
    loop {
        match listener.accept().await {
            // Two for the loop and its caller; each connection has one more.
            Ok(_) if Rc::strong_count(&status) > CONNECTIONS_MAX + 2 => {}
            Ok(socket) => spawn_local(serve(socket, Rc::clone(&status))).detach(),
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn serve(socket: TcpStream, status: Rc<Status>) {
    let service = service_fn(|request| answer(request, &status));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_headers(HEADERS_MAX);
    let connection = http.serve_connection(HyperIo(socket), service);
    // An error is a client that left or sent nonsense, which hyper has answered.
    let _ = time::timeout(CONNECTION_TIME_MAX, connection).await;
}

async fn answer(request: Request<Incoming>, status: &Status) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if !matches!(path, "/health" | "/ready" | "/metrics") {
        let message = format!("no such path: {path}; there are /health, /ready and /metrics");
        return Ok(error(StatusCode::NOT_FOUND, "not_found", &message));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "use GET");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refused);
    }
    Ok(match path {
        "/health" => health(),
        "/ready" => ready(status).await,
        _ => metrics_page(status).await,
    })
}

fn health() -> Response<Full<Bytes>> {
    let body = serde_json::json!({
        "status": "healthy", "service": "flowmesh", "timestamp": time::now_ms() / 1000,
    });
    json(StatusCode::OK, &body)
}

async fn ready(status: &Status) -> Response<Full<Bytes>> {
    let not_ready = |why: &str, message: &str| {
        json(StatusCode::SERVICE_UNAVAILABLE, &serde_json::json!({"status": why, "message": message}))
    };
    if *status.stopping.borrow() {
        return not_ready("stopping", "the server is draining its connections");
    }
    let Some(router) = status.router.borrow().clone() else {
        return not_ready("recovering", "shards are reading their logs");
    };
    let stats = router.all_stats(&Detail::Core).await;
    let fenced: Vec<usize> =
        stats.iter().enumerate().filter(|(_, core)| core.shard.fenced > 0).map(|(shard, _)| shard).collect();
    if fenced.is_empty() {
        return json(StatusCode::OK, &serde_json::json!({"status": "ready", "shards": stats.len()}));
    }
    not_ready(
        "fenced",
        &format!("shards {fenced:?} take no writes after a failed write or sync; see the log"),
    )
}

async fn metrics_page(status: &Status) -> Response<Full<Bytes>> {
    let router = status.router.borrow().clone();
    let scrape = match router {
        Some(router) => scrape(&router, &status.storage).await,
        None => Scrape::default(),
    };
    match metrics::render(scrape) {
        Ok(text) => {
            let mut page = Response::new(Full::from(text));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            page
        }
        Err(failed) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", &failed.to_string()),
    }
}

async fn scrape(router: &Router, storage: &Storage) -> Scrape {
    let cores = router.all_stats(&Detail::Resources).await;
    let committed = cores.iter().flat_map(|core| core.shard.offsets.own.iter().map(|((_, at), _)| *at));
    let ends = Detail::Ends(committed.collect());
    let ends = match &ends {
        Detail::Ends(none) if none.is_empty() => Vec::new(),
        ends => router.all_stats(ends).await,
    };
    Scrape {
        cores,
        ends: ends.into_iter().flat_map(|core| core.ends).collect(),
        catalog: router.catalog(),
        storage: storage.bytes().await,
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    json(status, &serde_json::json!({"error": code, "message": message}))
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
