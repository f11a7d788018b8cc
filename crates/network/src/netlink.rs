//! Links, addresses and routes: the few requests the crate makes, in the current thread's network namespace.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::error::{NetworkError, Result};

/// The origin that our routes carry in the kernel (`ip route` shows `proto 111`), so that they are told from others'.
pub(crate) const ROUTE_PROTOCOL: RouteProtocol = RouteProtocol::Other(111);

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NextHop {
    /// A neighbour.
    Gateway(Ipv4Addr),
    /// Directly onto the interface with this index.
    Device(u32),
}

/// A connection to the kernel from the current network namespace. It ends with its last handle.
pub(crate) fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(NetworkError::io("open a netlink socket (needs a kernel with rtnetlink)"))?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A link by name.
pub(crate) async fn link(handle: &Handle, name: &str) -> Result<Option<LinkMessage>> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(error) => match NetworkError::netlink(format!("look up interface {name}"))(error) {
            error if error.errno() == libc::ENODEV => Ok(None),
            error => Err(error),
        },
    }
}

/// The index of a link by name.
pub(crate) async fn link_index(handle: &Handle, name: &str) -> Result<Option<u32>> {
    Ok(link(handle, name).await?.map(|link| link.header.index))
}

/// All links.
pub(crate) async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    handle.link().get().execute().try_collect().await.map_err(NetworkError::netlink("list interfaces"))
}

/// A link's name.
pub(crate) fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The index of the bridge a link is a port of.
pub(crate) fn controller_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })
}

/// A link's MTU.
pub(crate) fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

/// Sets a link up.
pub(crate) async fn set_up(handle: &Handle, index: u32, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).up().build();
    handle.link().set(message).execute().await.map_err(NetworkError::netlink(format!("set {name} up")))
}

/// Deletes a link; one that is already gone is fine.
pub(crate) async fn delete_link(handle: &Handle, name: &str) -> Result<()> {
    let Some(index) = link_index(handle, name).await? else { return Ok(()) };
    match handle.link().del(index).execute().await.map_err(NetworkError::netlink(format!("delete {name}"))) {
        Err(error) if error.errno() != libc::ENODEV => Err(error),
        _ => Ok(()),
    }
}

/// Gives a link an address; one it has already is fine. With `connected_route` false the kernel makes no route for
/// the address's network.
pub(crate) async fn add_address(
    handle: &Handle,
    index: u32,
    address: Ipv4Net,
    connected_route: bool,
) -> Result<()> {
    let mut request = handle.address().add(index, address.addr().into(), address.prefix_len());
    if !connected_route {
        request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
    }
    match request.execute().await.map_err(NetworkError::netlink(format!("add address {address}"))) {
        Err(error) if error.errno() != libc::EEXIST => Err(error),
        _ => Ok(()),
    }
}

/// The IPv4 addresses of a link.
pub(crate) async fn addresses(handle: &Handle, index: u32) -> Result<Vec<Ipv4Net>> {
    let request = handle.address().get().set_link_index_filter(index);
    let messages: Vec<_> =
        request.execute().try_collect().await.map_err(NetworkError::netlink("list addresses"))?;
    Ok(messages
        .iter()
        .filter(|message| message.header.family == AddressFamily::Inet)
        .filter_map(|message| {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(std::net::IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            })?;
            Ipv4Net::new(local, message.header.prefix_len).ok()
        })
        .collect())
}

/// Takes an address off a link; one it does not have is fine.
pub(crate) async fn delete_address(handle: &Handle, index: u32, address: Ipv4Net) -> Result<()> {
    let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
        .index(index)
        .address(address.addr(), address.prefix_len())
        .build();
    match handle
        .address()
        .del(message)
        .execute()
        .await
        .map_err(NetworkError::netlink(format!("delete address {address}")))
    {
        Err(error) if error.errno() != libc::EADDRNOTAVAIL && error.errno() != libc::ENODEV => Err(error),
        _ => Ok(()),
    }
}

fn route(destination: Ipv4Net, next_hop: NextHop) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(destination.network(), destination.prefix_len())
        .protocol(ROUTE_PROTOCOL);
    match next_hop {
        NextHop::Gateway(gateway) => builder.gateway(gateway).build(),
        NextHop::Device(index) => builder.output_interface(index).scope(RouteScope::Link).build(),
    }
}

/// Adds a route or changes the one of the same destination.
pub(crate) async fn replace_route(handle: &Handle, destination: Ipv4Net, next_hop: NextHop) -> Result<()> {
    let what = match next_hop {
        NextHop::Gateway(gateway) => format!("add route {destination} via {gateway}"),
        NextHop::Device(_) => format!("add route {destination}"),
    };
    let message = route(destination, next_hop);
    handle.route().add(message).replace().execute().await.map_err(NetworkError::netlink(what))
}

/// Our routes in the main table, by destination.
pub(crate) async fn own_routes(handle: &Handle) -> Result<Vec<(Ipv4Net, RouteMessage)>> {
    Ok(ipv4_routes(handle).await?.into_iter().filter(|(_, route)| is_own(route)).collect())
}

/// Whether a route is one of ours.
pub(crate) fn is_own(route: &RouteMessage) -> bool {
    route.header.protocol == ROUTE_PROTOCOL
}

/// Removes a route that [`own_routes`] gave; one that is already gone is fine.
pub(crate) async fn delete_route(handle: &Handle, destination: Ipv4Net, route: RouteMessage) -> Result<()> {
    match handle
        .route()
        .del(route)
        .execute()
        .await
        .map_err(NetworkError::netlink(format!("delete route {destination}")))
    {
        Err(error) if error.errno() != libc::ESRCH => Err(error),
        _ => Ok(()),
    }
}

/// The index of the interface that the default route uses.
pub(crate) async fn default_interface(handle: &Handle) -> Result<Option<u32>> {
    let routes = ipv4_routes(handle).await?;
    Ok(routes.iter().filter(|(destination, _)| destination.prefix_len() == 0).find_map(|(_, route)| {
        route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
    }))
}

/// Whether a route leads straight onto the interface with this index.
pub(crate) fn leads_to(route: &RouteMessage, index: u32) -> bool {
    gateway_of(route).is_none() && route.attributes.contains(&RouteAttribute::Oif(index))
}

/// The gateway of a route.
pub(crate) fn gateway_of(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    })
}

/// The routes in the main table, by destination.
pub(crate) async fn ipv4_routes(handle: &Handle) -> Result<Vec<(Ipv4Net, RouteMessage)>> {
    let request = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build());
    let routes: Vec<_> =
        request.execute().try_collect().await.map_err(NetworkError::netlink("list routes"))?;
    Ok(routes
        .into_iter()
        .filter(|route| route.header.table == RT_TABLE_MAIN)
        .filter_map(|route| {
            let network = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(network)) => Some(*network),
                _ => None,
            });
            let network = network.unwrap_or(Ipv4Addr::UNSPECIFIED);
            Some((Ipv4Net::new(network, route.header.destination_prefix_length).ok()?, route))
        })
        .collect())
}

const RT_TABLE_MAIN: u8 = 254;

/// Runs `work` inside the network namespace behind `netns`, on an OS thread of its own: a thread that entered a
/// namespace must never serve anything else.
pub(crate) async fn in_namespace<T, F, W>(netns: &Path, work: W) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>>,
    W: FnOnce(Handle) -> F + Send + 'static,
{
    let namespace = File::open(netns).map_err(NetworkError::file("open network namespace", netns))?;
    let path = netns.display().to_string();
    let (answer, result) = tokio::sync::oneshot::channel();
    let run = move || -> Result<T> {
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|error| {
            NetworkError::io(format!("enter network namespace {path} (needs CAP_SYS_ADMIN)"))(error.into())
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(NetworkError::io("start a runtime for a network namespace"))?;
        runtime.block_on(async { work(connect()?).await })
    };
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            // Nobody waits any more when the caller was cancelled.
            let _ = answer.send(run());
        })
        .map_err(NetworkError::io("start a thread for a network namespace"))?;
    result.await.map_err(|_| NetworkError::Other("the thread in the network namespace died".into()))?
}

/// Writes a kernel parameter below `/proc/sys` in the current thread's network namespace, unless it has the value.
pub(crate) fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    if std::fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| NetworkError::Io {
        what: format!(
            "set {} to {value} (set it on the host if /proc/sys is read-only here)",
            name.replace('/', ".")
        ),
        source,
    })
}
