//! `orlop image`: the client of the node's socket.

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use orlop_cri::Image;
use tokio_util::io::ReaderStream;

use crate::cli::{ImageAction, ImageArguments, LocationArguments, NodeSocketArguments};
use crate::layout::Layout;

type RequestBody = BoxBody<Bytes, std::io::Error>;

/// Runs one action.
pub async fn run(arguments: ImageArguments) -> anyhow::Result<()> {
    match arguments.action {
        ImageAction::Ls { node } => list(&node).await,
        ImageAction::Import { node, archives } => {
            for archive in &archives {
                import(&node, archive).await.with_context(|| archive.display().to_string())?;
            }
            Ok(())
        }
        ImageAction::Pull { node, images } => {
            for image in &images {
                eprintln!("pulling {image}");
                let path = format!("/images/pull?reference={}", encode(image));
                let id = text(send(&node, Method::POST, &path, empty()).await?).await?;
                println!("{image} {id}");
            }
            Ok(())
        }
        ImageAction::Rm { node, images } => {
            for image in &images {
                let path = format!("/images?reference={}", encode(image));
                text(send(&node, Method::DELETE, &path, empty()).await?).await?;
                println!("removed {image}");
            }
            Ok(())
        }
    }
}

async fn list(node: &NodeSocketArguments) -> anyhow::Result<()> {
    let answer = text(send(node, Method::GET, "/images", empty()).await?).await?;
    let images: Vec<Image> = serde_json::from_str(&answer).context("the server's answer")?;
    println!("{:<56} {:<14} SIZE", "IMAGE", "ID");
    for image in images {
        let id = image.id.trim_start_matches("sha256:").chars().take(12).collect::<String>();
        let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
        for name in names.iter().map(String::as_str).chain(names.is_empty().then_some("<none>")) {
            println!("{name:<56} {id:<14} {:.1} MB", image.size as f64 / 1e6);
        }
    }
    Ok(())
}

async fn import(node: &NodeSocketArguments, archive: &Path) -> anyhow::Result<()> {
    let file = tokio::fs::File::open(archive).await?;
    let body = StreamBody::new(ReaderStream::with_capacity(file, 1 << 18).map_ok(Frame::data));
    let answer = text(send(node, Method::POST, "/images/import", BodyExt::boxed(body)).await?).await?;
    let names: Vec<String> = serde_json::from_str(&answer).context("the server's answer")?;
    for name in names {
        println!("imported {name}");
    }
    Ok(())
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

async fn send(
    node: &NodeSocketArguments,
    method: Method,
    path: &str,
    body: RequestBody,
) -> anyhow::Result<Response<Incoming>> {
    let layout = Layout::find(&LocationArguments { data_dir: node.data_dir.clone(), instance: None })?;
    let socket = layout.socket();
    let stream = tokio::net::UnixStream::connect(&socket).await.with_context(|| {
        format!(
            "no server answers at {}: start `orlop server --data-dir {}`",
            socket.display(),
            layout.data.display()
        )
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request =
        Request::builder().method(method).uri(path).header(http::header::HOST, "node").body(body)?;
    Ok(sender.send_request(request).await?)
}

async fn text(answer: Response<Incoming>) -> anyhow::Result<String> {
    let status = answer.status();
    let body = answer.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status != StatusCode::OK {
        bail!("{text}");
    }
    Ok(text)
}

/// Percent-encodes what a query value may not hold.
fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~/:@".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
