//! The paths of the admin endpoint. Promises: bodies are small, errors are JSON with an `error`, and whoever may not change
//! something learns what is missing.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

use super::{Admin, Token};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A log filter is a line of text.
const BODY_BYTES_MAX: usize = 4096;

type App = State<Arc<Admin>>;

pub(super) fn routes(admin: Admin, address: SocketAddr) -> Router {
    let guard = Guard { token: admin.token.clone(), loopback: address.ip().is_loopback() };
    let changes = Router::new()
        .route("/api/v1/seal", post(seal))
        .route("/api/v1/log-level", post(log_level))
        .route_layer(middleware::from_fn_with_state(Arc::new(guard), admit));
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .merge(changes)
        .fallback(|| async { refuse(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(admin))
}

struct Guard {
    token: Option<Token>,
    loopback: bool,
}

impl Guard {
    fn refusal(&self, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
        // A browser names the page that sent it; no page has any business here, least of all through the operator's own machine.
        if headers.contains_key(header::ORIGIN) {
            return Some((StatusCode::FORBIDDEN, "requests from web pages are refused"));
        }
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or("");
        match &self.token {
            Some(token) if token.admits(authorization) => None,
            Some(_) => Some((StatusCode::UNAUTHORIZED, "send the configured token as `Authorization: Bearer ...`")),
            None if self.loopback => None,
            None => Some((StatusCode::FORBIDDEN, "this endpoint listens beyond loopback: configure a token to allow changes")),
        }
    }
}

async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    match guard.refusal(request.headers()) {
        Some((status, why)) => {
            tracing::warn!(path = request.uri().path(), %status, why, "admin request refused");
            refuse(status, why)
        }
        None => next.run(request).await,
    }
}

fn refuse(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

fn absent() -> Response {
    refuse(StatusCode::NOT_FOUND, "this program has no such thing")
}

async fn livez(State(admin): App) -> Response {
    let late = admin.heartbeats.late();
    if late.is_empty() {
        return Json(json!({ "live": true })).into_response();
    }
    let silent: Vec<_> =
        late.iter().map(|(name, silence)| json!({ "loop": name, "silent_seconds": silence.as_secs_f64() })).collect();
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "live": false, "silent": silent }))).into_response()
}

async fn readyz(State(admin): App) -> Response {
    let Some(ready) = &admin.ready else { return absent() };
    let components = ready();
    let all = components.values().all(|component| component.ready);
    let status = if all { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": all, "components": components }))).into_response()
}

async fn metrics(State(admin): App) -> Response {
    let Some(registry) = &admin.registry else { return absent() };
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written"),
    }
}

async fn status(State(admin): App) -> Response {
    admin.status.as_ref().map_or_else(absent, |status| Json(status()).into_response())
}

async fn seal(State(admin): App) -> Response {
    match admin.seal.as_ref().map(|seal| seal()) {
        None => absent(),
        Some(Ok(answer)) => (StatusCode::ACCEPTED, Json(answer)).into_response(),
        Some(Err(why)) => refuse(StatusCode::CONFLICT, &why),
    }
}

async fn log_level(State(admin): App, filter: String) -> Response {
    let Some(level) = &admin.log_level else { return absent() };
    match level.set(filter.trim()) {
        Ok(()) => {
            tracing::info!(filter = filter.trim(), "log level changed");
            Json(json!({ "filter": filter.trim() })).into_response()
        }
        Err(error) => refuse(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}
