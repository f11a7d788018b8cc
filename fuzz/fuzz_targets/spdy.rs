//! What the other end of an exec or port-forward connection may send.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orlop_streaming::spdy::{Connection, Role};
use tokio::io::AsyncWriteExt as _;

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let (connection, mut incoming) = Connection::start(near, Role::Server).expect("a connection");
        let accepting = tokio::spawn(async move {
            while let Some(stream) = incoming.recv().await {
                let (mut reader, writer) = stream.split();
                tokio::spawn(async move { while reader.read().await.is_some() {} });
                let _ = writer.finish().await;
            }
        });
        // Data longer than the pipe waits for its reader; a peer that reads nothing must not be waited for.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(50), far.write_all(data)).await;
        drop(far);
        connection.ended().await;
        accepting.await.expect("nothing panics");
    });
});
