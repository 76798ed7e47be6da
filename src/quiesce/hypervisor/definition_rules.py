"""What the definition of an imported VM may have: every other element or attribute is refused by name (definition.py).

A line is an element, by its path below <domain>, and its attributes. `*` in front: the element may occur several times.
`name=pattern`: the attribute must match this regular expression, as a whole; `#=pattern`: the text must. `...` at the end: all
that is in the element is allowed, because libvirt does not act on it. A backslash at the end: the line goes on.

Not here, on purpose: what makes the host open, write or run a file of the definition's choice, connect to something, give away
a device, or confine QEMU less.
"""

from __future__ import annotations

RULES = r"""
.                                       type=kvm|qemu id
name
uuid
genid
title
description
metadata                                ...
memory                                  unit dumpCore
currentMemory                           unit
maxMemory                               unit slots
memoryBacking
memoryBacking/hugepages
*memoryBacking/hugepages/page           size unit nodeset
memoryBacking/nosharepages
memoryBacking/source                    type=anonymous|memfd
memoryBacking/access                    mode
memoryBacking/allocation                mode threads
memoryBacking/discard
blkiotune
blkiotune/weight
memtune
memtune/hard_limit                      unit
memtune/soft_limit                      unit
memtune/swap_hard_limit                 unit
vcpu                                    placement cpuset current
vcpus
*vcpus/vcpu                             id enabled hotpluggable order
iothreads
iothreadids
*iothreadids/iothread                   id thread_pool_min thread_pool_max
cputune
cputune/shares
cputune/period
cputune/quota
cputune/global_period
cputune/global_quota
cputune/emulator_period
cputune/emulator_quota
cputune/iothread_period
cputune/iothread_quota
*cputune/vcpupin                        vcpu cpuset
cputune/emulatorpin                     cpuset
*cputune/iothreadpin                    iothread cpuset
numatune
numatune/memory                         mode nodeset placement
*numatune/memnode                       cellid mode nodeset
resource
resource/partition                      #=/machine
os                                      firmware=efi|bios
os/type                                 arch=[a-z0-9_]+ machine=[A-Za-z0-9_.-]+ #=hvm
os/firmware
*os/firmware/feature                    enabled name
os/loader                               readonly=yes secure type stateless format=raw|qcow2
os/nvram                                template templateFormat type=file format=raw|qcow2
os/nvram/source                         file
*os/boot                                dev
os/bootmenu                             enable timeout
os/smbios                               mode=emulate|sysinfo
os/bios                                 useserial rebootTimeout
os/kernel
os/initrd
os/cmdline
*sysinfo                                type=smbios
sysinfo/bios
*sysinfo/bios/entry                     name
sysinfo/system
*sysinfo/system/entry                   name
*sysinfo/baseBoard
*sysinfo/baseBoard/entry                name
sysinfo/chassis
*sysinfo/chassis/entry                  name
sysinfo/oemStrings
*sysinfo/oemStrings/entry
features
features/pae
features/acpi
features/apic                           eoi
features/hap                            state
features/hyperv                         mode
features/hyperv/relaxed                 state
features/hyperv/vapic                   state
features/hyperv/spinlocks               state retries
features/hyperv/vpindex                 state
features/hyperv/runtime                 state
features/hyperv/synic                   state
features/hyperv/stimer                  state
features/hyperv/stimer/direct           state
features/hyperv/reset                   state
features/hyperv/vendor_id               state value
features/hyperv/frequencies             state
features/hyperv/reenlightenment         state
features/hyperv/tlbflush                state
features/hyperv/tlbflush/direct         state
features/hyperv/tlbflush/extended       state
features/hyperv/ipi                     state
features/hyperv/evmcs                   state
features/hyperv/avic                    state
features/hyperv/emsr_bitmap             state
features/hyperv/xmm_input               state
features/kvm
features/kvm/hidden                     state
features/kvm/hint-dedicated             state
features/kvm/poll-control               state
features/kvm/pv-ipi                     state
features/pvspinlock                     state
features/pmu                            state
features/vmport                         state
features/smm                            state
features/smm/tseg                       unit
features/ioapic                         driver
features/gic                            version
features/vmcoreinfo                     state
features/msrs                           unknown
features/ps2                            state
features/ras                            state
features/tcg
features/tcg/tb-cache                   unit
cpu                                     mode match check migratable deprecated_features
cpu/model                               fallback vendor_id
cpu/vendor
cpu/topology                            sockets dies clusters cores threads
*cpu/feature                            name policy
cpu/cache                               mode level
cpu/maxphysaddr                         mode bits limit
cpu/numa
*cpu/numa/cell                          id cpus memory unit memAccess discard
cpu/numa/cell/distances
*cpu/numa/cell/distances/sibling        id value
clock                                   offset adjustment basis timezone start
*clock/timer                            name tickpolicy present track frequency mode
clock/timer/catchup                     threshold slew limit
on_poweroff                             #=destroy|restart|preserve|rename-restart
on_reboot                               #=destroy|restart|preserve|rename-restart
on_crash                                #=destroy|restart|preserve|rename-restart
pm
pm/suspend-to-mem                       enabled
pm/suspend-to-disk                      enabled
devices
devices/emulator
*devices/disk                           type=file|block device=disk|cdrom|floppy model snapshot
devices/disk/driver                     name=qemu type cache io discard detect_zeroes error_policy rerror_policy ioeventfd \
                                        event_idx iothread queues queue_size packed iommu ats page_per_vq copy_on_read \
                                        discard_no_unref
devices/disk/driver/iothreads
*devices/disk/driver/iothreads/iothread id
devices/disk/driver/metadata_cache
devices/disk/driver/metadata_cache/max_size unit
devices/disk/source                     file index startupPolicy
devices/disk/backingStore
devices/disk/target                     dev bus tray removable rotation_rate
devices/disk/serial
devices/disk/wwn
devices/disk/vendor
devices/disk/product
devices/disk/readonly
devices/disk/shareable
devices/disk/blockio                    logical_block_size physical_block_size discard_granularity
devices/disk/geometry                   cyls heads secs trans
devices/disk/iotune
devices/disk/iotune/total_bytes_sec
devices/disk/iotune/read_bytes_sec
devices/disk/iotune/write_bytes_sec
devices/disk/iotune/total_iops_sec
devices/disk/iotune/read_iops_sec
devices/disk/iotune/write_iops_sec
*devices/controller                     type index model ports vectors
devices/controller/driver               queues cmd_per_lun max_sectors ioeventfd iothread iommu ats packed page_per_vq
devices/controller/model                name
devices/controller/target               chassis chassisNr port busNr index hotplug memReserve
devices/controller/target/node
devices/controller/master               startport
devices/controller/pcihole64            unit
*devices/interface                      type=network|bridge|user|direct trustGuestRxFilters
devices/interface/mac                   address type check
devices/interface/source                network portgroup bridge dev mode=bridge|vepa|private|passthrough
devices/interface/target                dev managed=yes
devices/interface/model                 type
devices/interface/driver                name=qemu|vhost txmode ioeventfd event_idx queues rx_queue_size tx_queue_size rss \
                                        rss_hash_report iommu ats packed page_per_vq
devices/interface/driver/host           csum gso tso4 tso6 ecn ufo mrg_rxbuf
devices/interface/driver/guest          csum tso4 tso6 ecn ufo
devices/interface/link                  state
devices/interface/mtu                   size
devices/interface/rom                   bar enabled
devices/interface/port                  isolated
devices/interface/bandwidth
devices/interface/bandwidth/inbound     average peak burst floor
devices/interface/bandwidth/outbound    average peak burst
devices/interface/filterref             filter
*devices/interface/filterref/parameter  name value
devices/interface/virtualport           type
devices/interface/virtualport/parameters managerid typeid typeidversion instanceid interfaceid profileid
devices/interface/vlan                  trunk
*devices/interface/vlan/tag             id nativeMode
*devices/graphics                       type=vnc|spice port autoport tlsPort websocket listen passwd passwdValidTo connected \
                                        keymap sharePolicy defaultMode socket
*devices/graphics/listen                type=address|network|socket|none address network socket
*devices/graphics/channel               name mode
devices/graphics/image                  compression
devices/graphics/jpeg                   compression
devices/graphics/zlib                   compression
devices/graphics/playback               compression
devices/graphics/streaming              mode
devices/graphics/clipboard              copypaste
devices/graphics/filetransfer           enable
devices/graphics/mouse                  mode
devices/graphics/gl                     enable=no
*devices/video
devices/video/driver                    name=qemu iommu ats packed page_per_vq
devices/video/model                     type=cirrus|vga|qxl|virtio|bochs|ramfb|none ram vram vram64 vgamem heads primary blob \
                                        edid
devices/video/model/acceleration        accel2d accel3d
devices/video/model/resolution          x y
*devices/audio                          id type=none|spice
*devices/sound                          model multichannel streams
*devices/sound/codec                    type
devices/sound/audio                     id
devices/sound/driver                    iommu ats packed page_per_vq
*devices/input                          type=tablet|mouse|keyboard bus model
devices/input/driver                    iommu ats packed page_per_vq
*devices/hub                            type
devices/memballoon                      model autodeflate freePageReporting
devices/memballoon/stats                period
devices/memballoon/driver               iommu ats packed page_per_vq
*devices/rng                            model
devices/rng/backend                     model=random|builtin #=/dev/u?random|/dev/hwrng|
devices/rng/rate                        bytes period
devices/rng/driver                      iommu ats packed page_per_vq
*devices/watchdog                       model action=reset|shutdown|poweroff|pause|none|inject-nmi
*devices/panic                          model
devices/vsock                           model
devices/vsock/cid                       auto address
devices/vsock/driver                    iommu ats packed page_per_vq
devices/iommu                           model
devices/iommu/driver                    intremap caching_mode eim iotlb aw_bits dma_translation
devices/tpm                             model
devices/tpm/backend                     type=emulator version persistent_state
devices/tpm/backend/source              type=dir|file path
devices/tpm/backend/active_pcr_banks
devices/tpm/backend/active_pcr_banks/sha1
devices/tpm/backend/active_pcr_banks/sha256
devices/tpm/backend/active_pcr_banks/sha384
devices/tpm/backend/active_pcr_banks/sha512
*devices/memory                         model=dimm|virtio-mem access discard
devices/memory/target
devices/memory/target/size              unit
devices/memory/target/node
devices/memory/target/block             unit
devices/memory/target/requested         unit
*devices/channel                        type=unix|spicevmc|spiceport|qemu-vdagent|pty|null
devices/channel/source                  mode=bind path channel
devices/channel/source/clipboard        copypaste
devices/channel/source/mouse            mode
devices/channel/log                     file append
devices/channel/target                  type=virtio name state
*devices/serial                         type=pty|file|null|vc|spiceport tty
devices/serial/source                   path append channel
devices/serial/log                      file append
devices/serial/protocol                 type=raw
devices/serial/target                   type port
devices/serial/target/model             name
*devices/console                        type=pty|file|null|vc|spiceport tty
devices/console/source                  path append channel
devices/console/log                     file append
devices/console/protocol                type=raw
devices/console/target                  type port
*devices/parallel                       type=pty|file|null|vc tty
devices/parallel/source                 path append
devices/parallel/log                    file append
devices/parallel/target                 type port
*devices/redirdev                       bus type=spicevmc
devices/redirdev/protocol               type=raw
devices/redirfilter
*devices/redirfilter/usbdev             class vendor product version allow
devices/smartcard                       mode=passthrough type=spicevmc
devices/crypto                          model type
devices/crypto/backend                  model=builtin queues
"""

OF_EVERY_DEVICE = r"""
alias                                   name
boot                                    order loadparm
acpi                                    index
address                                 type domain bus slot function multifunction controller target unit port base reg \
                                        iobase irq cssid ssid devno
address/zpci                            uid fid
"""
"""Below each <devices/...>."""
