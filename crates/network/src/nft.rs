//! Runs `nft -f -`: one text, one transaction, all or nothing.

use std::io::ErrorKind;
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{NetworkError, Result};

/// Where nft is looked for when PATH does not have it, as in service managers' short PATH.
const PLACES: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// Applies `text` as one transaction in the current network namespace. On an error nothing was applied.
pub(crate) async fn apply(table: &str, text: &str) -> Result<()> {
    let output = run(&["-f", "-"], text).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetworkError::Nft {
        table: table.to_owned(),
        message: explain(&String::from_utf8_lossy(&output.stderr)),
    })
}

/// What `nft ARGS` prints; `None` when nft fails because the object does not exist.
pub(crate) async fn query(table: &str, args: &[&str]) -> Result<Option<String>> {
    let output = run(args, "").await?;
    if output.status.success() {
        return Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No such file or directory") {
        return Ok(None);
    }
    Err(NetworkError::Nft { table: table.to_owned(), message: explain(&stderr) })
}

async fn run(args: &[&str], input: &str) -> Result<Output> {
    for program in PLACES {
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(NetworkError::io(format!("start {program}"))(error)),
        };
        let stdin = child.stdin.take();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A nft that stops reading says why on stderr and by its status.
                let _ = stdin.write_all(input.as_bytes()).await;
                let _ = stdin.shutdown().await;
            }
        };
        let ((), output) = tokio::join!(write, child.wait_with_output());
        return output.map_err(NetworkError::io(format!("wait for {program}")));
    }
    Err(NetworkError::NoNft)
}

/// The first lines of what nft said, with the next step where the cause is known.
fn explain(stderr: &str) -> String {
    let said: Vec<&str> = stderr.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect();
    let said = said.join("; ");
    let hint = if stderr.contains("Operation not permitted") {
        " (needs root with CAP_NET_ADMIN)"
    } else if stderr.contains("not supported") || stderr.contains("Unable to initialize Netlink socket") {
        " (the kernel lacks nftables NAT: it needs nf_tables, nft_nat, nft_masq, nft_fib_ipv4, nft_numgen, nft_reject_ipv4)"
    } else {
        ""
    };
    format!("{said}{hint}")
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn errors_name_the_next_step() {
        let check =
            |stderr: &str, expected: &str| assert!(explain(stderr).contains(expected), "{}", explain(stderr));
        check("Error: Could not process rule: Operation not permitted\n", "CAP_NET_ADMIN");
        check("Error: Could not process rule: Operation not supported\n", "nft_nat");
        check("a\n\nb\nc\nd\n", "a; b; c");
    }
}
