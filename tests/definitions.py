"""Definitions of ordinary VMs, as people have them: virt-manager's, virt-install's, the lab's. None has a disk."""

from __future__ import annotations

UUID = "0b5bd3e8-6e0c-4a0e-9a43-5f0ad0c3d6f1"

DISK = "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{path}'/>\
<target dev='vda' bus='virtio'/></disk>"

DESKTOP = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><title>the desktop</title><description>of virt-manager</description>
  <metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
    <libosinfo:os id='http://fedoraproject.org/fedora/38'/></libosinfo:libosinfo></metadata>
  <memory unit='MiB'>64</memory><currentMemory unit='MiB'>64</currentMemory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu placement='static'>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/><bootmenu enable='yes'/><smbios mode='sysinfo'/></os>
  <sysinfo type='smbios'><system><entry name='manufacturer'>ours</entry><entry name='uuid'>{uuid}</entry></system></sysinfo>
  <features><acpi/><apic/><vmport state='off'/></features>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    {disk}
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='usb' model='qemu-xhci' ports='15'/><controller type='virtio-serial'/>
    <interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/{name}.agent'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'><target type='virtio' name='io.quiesce.agent.0'/></channel>
    <serial type='pty'><log file='/var/log/{name}.log' append='off'/></serial>
    <console type='pty'><log file='/var/log/{name}.log' append='off'/></console>
    <input type='tablet' bus='usb'/>
    <graphics type='vnc' port='5977' autoport='no' listen='127.0.0.1' passwd='secret'/>
    <sound model='ich9'/><audio id='1' type='none'/>
    <video><model type='virtio' heads='1' primary='yes'/></video>
    <memballoon model='virtio'><stats period='5'/></memballoon>
    <watchdog model='itco' action='reset'/>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>"""

WINDOWS = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><genid/><memory unit='MiB'>128</memory><vcpu>2</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
    <firmware><feature enabled='no' name='secure-boot'/></firmware></os>
  <features><acpi/><apic/>
    <hyperv><relaxed state='on'/><vapic state='on'/><spinlocks state='on' retries='8191'/></hyperv></features>
  <cpu mode='maximum'/>
  <clock offset='localtime'><timer name='hypervclock' present='yes'/></clock>
  <devices>
    {disk}
    <controller type='scsi' model='virtio-scsi'><driver queues='2'/></controller>
    <interface type='user'><model type='e1000e'/><boot order='2'/></interface>
    <graphics type='vnc' autoport='yes'/><video><model type='vga'/></video>
    <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
  </devices>
</domain>"""

SERVER = """
<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu><iothreads>1</iothreads>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><pae/></features>
  <devices>
    {disk}
    <serial type='file'><source path='/var/log/console-of-{name}.log'/><target port='0'/></serial>
    <console type='file'><source path='/var/log/console-of-{name}.log'/><target type='serial' port='0'/></console>
    <controller type='usb' model='none'/><memballoon model='none'/><panic model='isa'/>
  </devices>
</domain>"""

ORDINARY = {"desktop": DESKTOP, "windows": WINDOWS, "server": SERVER}


def definition_of(kind: str, *, name: str = "web1", uuid: str = UUID, path: str = "/e/vda.qcow2") -> str:
    return ORDINARY[kind].format(name=name, uuid=uuid, disk=DISK.format(path=path)).strip()
