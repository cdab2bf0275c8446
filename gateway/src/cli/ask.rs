//! One GET to the running agent.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, StatusCode, Uri, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// Reading a full flow table takes seconds; more means that the agent hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("--api {0}: not an address of an agent: write one like http://127.0.0.1:9153")]
    Url(String),
    #[error("{at}: {source}: is the agent running? start it with `gateway run`, or give its address with --api")]
    Connect { at: String, source: std::io::Error },
    #[error("{at}: {message}: is it a gateway's HTTP address?")]
    Talk { at: String, message: String },
    #[error("{at}: no answer within {} seconds: see the agent's log", PATIENCE.as_secs())]
    Late { at: String },
}

/// The JSON under `/api/v1/{path}`.
pub(super) async fn get(api: &str, path: &str) -> Result<serde_json::Value, AskError> {
    let at = authority(api)?;
    match timeout(PATIENCE, exchange(&at, path)).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(AskError::Late { at }),
    }
}

fn authority(api: &str) -> Result<String, AskError> {
    let wrong = || AskError::Url(api.to_owned());
    let full = if api.contains("://") { api.to_owned() } else { format!("http://{api}") };
    let uri: Uri = full.parse().map_err(|_error| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    if uri.scheme_str() != Some("http") {
        return Err(wrong());
    }
    Ok(if authority.port().is_some() { authority.to_string() } else { format!("{authority}:80") })
}

async fn exchange(at: &str, path: &str) -> Result<serde_json::Value, AskError> {
    let talk = |message: String| AskError::Talk { at: at.to_owned(), message };
    let stream = TcpStream::connect(at).await.map_err(|source| AskError::Connect { at: at.to_owned(), source })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| talk(error.to_string()))?;
    tokio::spawn(connection);
    let request = Request::get(format!("/api/v1/{path}"))
        .header("host", at)
        .body(Empty::<Bytes>::new())
        .map_err(|error| talk(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| talk(error.to_string()))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| talk(error.to_string()))?.to_bytes();
    if status != StatusCode::OK {
        return Err(talk(format!("/api/v1/{path} gave {status}")));
    }
    serde_json::from_slice(&body).map_err(|error| talk(format!("/api/v1/{path} is not JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::authority;

    #[test]
    fn an_api_address_is_read_in_every_usual_form() {
        for (api, wanted) in [
            ("http://127.0.0.1:9153", "127.0.0.1:9153"),
            ("127.0.0.1:9153", "127.0.0.1:9153"),
            ("http://[::1]:9153/", "[::1]:9153"),
            ("http://gateway", "gateway:80"),
        ] {
            assert_eq!(authority(api).expect(api), wanted);
        }
        for api in ["https://127.0.0.1:9153", "", "http://", "a b"] {
            assert!(authority(api).is_err(), "{api}");
        }
    }
}
