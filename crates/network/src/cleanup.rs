//! Takes away what the other modules leave behind on purpose when a process ends.

use std::fs;
use std::io::ErrorKind;

use futures::future::BoxFuture;
use ipnet::Ipv4Net;

use crate::error::{NetworkError, Result};
use crate::{NetworkOptions, netlink, table};

/// Removes the instance's network from the current network namespace: the nftables table, the pods' interfaces, the
/// bridge, our routes, the cluster DNS address and the address reservations. What is already gone is fine. It goes on
/// after a failure and returns the first one. `net.ipv4.ip_forward` stays on: others may have come to need it.
pub fn cleanup(options: &NetworkOptions) -> BoxFuture<'_, Result<()>> {
    Box::pin(async move {
        options.validate()?;
        let results = [table::remove(options).await, links(options).await, reservations(options)];
        results.into_iter().collect()
    })
}

async fn links(options: &NetworkOptions) -> Result<()> {
    let handle = netlink::connect()?;
    if let Some(bridge) = netlink::link_index(&handle, &options.bridge).await? {
        for link in netlink::links(&handle).await? {
            if netlink::controller_of(&link) == Some(bridge)
                && let Some(name) = netlink::name_of(&link)
            {
                netlink::delete_link(&handle, name).await?;
            }
        }
        netlink::delete_link(&handle, &options.bridge).await?;
    }
    let lo = netlink::link_index(&handle, "lo").await?;
    for (destination, route) in netlink::own_routes(&handle).await? {
        let services = lo.is_some_and(|lo| netlink::leads_to(&route, lo));
        if services || options.cluster_cidr.contains(&destination) {
            netlink::delete_route(&handle, destination, route).await?;
        }
    }
    if let (Some(dns), Some(lo)) = (options.cluster_dns, lo) {
        netlink::delete_address(&handle, lo, Ipv4Net::from(dns)).await?;
    }
    Ok(())
}

fn reservations(options: &NetworkOptions) -> Result<()> {
    let directory = options.state_dir.join("sandboxes");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(NetworkError::file("remove", &directory)(error))
        }
        _ => {
            // Only if nothing else is kept there.
            let _ = fs::remove_dir(&options.state_dir);
            Ok(())
        }
    }
}
