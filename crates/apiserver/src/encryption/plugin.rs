//! The gRPC client of a key management plugin (KMS v2): `v2.KeyManagementService` on a Unix socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// `StatusRequest`
#[derive(Clone, PartialEq, Message)]
pub struct StatusRequest {}

/// `StatusResponse`
#[derive(Clone, PartialEq, Message)]
pub struct StatusResponse {
    /// Version of the plugin's API: `v2`.
    #[prost(string, tag = "1")]
    pub version: String,
    /// `ok`, or what is wrong.
    #[prost(string, tag = "2")]
    pub healthz: String,
    /// The key that new values are to be encrypted with.
    #[prost(string, tag = "3")]
    pub key_id: String,
}

/// `EncryptRequest`
#[derive(Clone, PartialEq, Message)]
pub struct EncryptRequest {
    /// What to encrypt.
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
    /// Names the request in logs.
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// `EncryptResponse`
#[derive(Clone, PartialEq, Message)]
pub struct EncryptResponse {
    /// The encrypted data.
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    /// The key that was used.
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// Kept beside the data, and sent again to decrypt it.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// `DecryptRequest`
#[derive(Clone, PartialEq, Message)]
pub struct DecryptRequest {
    /// What to decrypt.
    #[prost(bytes = "vec", tag = "1")]
    pub ciphertext: Vec<u8>,
    /// Names the request in logs.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// The key it was encrypted with.
    #[prost(string, tag = "3")]
    pub key_id: String,
    /// What the plugin said when it encrypted it.
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
}

/// `DecryptResponse`
#[derive(Clone, PartialEq, Message)]
pub struct DecryptResponse {
    /// The decrypted data.
    #[prost(bytes = "vec", tag = "1")]
    pub plaintext: Vec<u8>,
}

/// Longest answer in bytes: what it may say of an encrypted key, and some.
const MAX_ANSWER: usize = 64 * 1024;

/// A plugin.
#[derive(Clone)]
pub struct Plugin {
    channel: Channel,
    timeout: Duration,
}

impl Plugin {
    /// A plugin at a socket, connected to when it is first asked.
    pub fn new(socket: PathBuf, timeout: Duration) -> Plugin {
        let connect = move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        };
        let channel =
            Endpoint::from_static("http://kms").connect_with_connector_lazy(tower::service_fn(connect));
        Plugin { channel, timeout }
    }

    async fn ask<Q, A>(&self, method: &'static str, question: Q) -> Result<A, String>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let exchange = async {
            client.ready().await.map_err(|error| error.to_string())?;
            let answer = client
                .unary(
                    tonic::Request::new(question),
                    PathAndQuery::from_static(method),
                    ProstCodec::<Q, A>::default(),
                )
                .await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.message().to_string())
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err("context deadline exceeded".to_string()))
    }

    /// How it is, and which key it encrypts with.
    pub async fn status(&self) -> Result<StatusResponse, String> {
        self.ask("/v2.KeyManagementService/Status", StatusRequest {}).await
    }

    /// Encrypts.
    pub async fn encrypt(&self, plaintext: Vec<u8>) -> Result<EncryptResponse, String> {
        let uid = uuid::Uuid::new_v4().to_string();
        self.ask("/v2.KeyManagementService/Encrypt", EncryptRequest { plaintext, uid }).await
    }

    /// Decrypts.
    pub async fn decrypt(&self, mut request: DecryptRequest) -> Result<Vec<u8>, String> {
        request.uid = uuid::Uuid::new_v4().to_string();
        let answer: DecryptResponse = self.ask("/v2.KeyManagementService/Decrypt", request).await?;
        Ok(answer.plaintext)
    }
}
