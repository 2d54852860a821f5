package testimages

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/google/uuid"
)

// Part is a partition of a GPTDisk.
type Part struct {
	Name  string // "esp" becomes an EFI system partition
	Size  int64  // bytes, a multiple of 1 MiB
	Image string // the file that it begins with; "" means zeros
}

// Slots returns the partitions of a disk with two slots of size bytes, root-a and root-b, which hold the
// images, after an empty esp.
func Slots(size int64, a, b string) []Part {
	return []Part{{"esp", 1 << 20, ""}, {"root-a", size, a}, {"root-b", size, b}}
}

// GPTDisk writes a disk image with these partitions, one after the other from 1 MiB on, for a disk with sectors
// of 512 or 4096 bytes. Equal arguments give equal files. The GUIDs depend on the names.
func GPTDisk(path string, sectorSize int, parts ...Part) error {
	const align = 1 << 20 // free space before the first partition, and after the last for the backup table
	return createFile(path, func(f *os.File) error {
		end := int64(align)
		table := gpt.Table{
			LogicalSectorSize:  sectorSize,
			PhysicalSectorSize: sectorSize,
			ProtectiveMBR:      true,
			GUID:               guid("disk"),
		}
		for i, p := range parts {
			if p.Size <= 0 || p.Size%align != 0 {
				return fmt.Errorf("partition %s: a size of %d bytes is no multiple of 1 MiB", p.Name, p.Size)
			}
			table.Partitions = append(table.Partitions, p.gptEntry(i+1, end, int64(sectorSize)))
			if err := p.copyTo(f, end); err != nil {
				return fmt.Errorf("partition %s: %w", p.Name, err)
			}
			end += p.Size
		}
		if err := f.Truncate(end + align); err != nil {
			return err
		}
		return table.Write(f, end+align)
	})
}

func (p Part) gptEntry(number int, start, sectorSize int64) *gpt.Partition {
	kind := gpt.LinuxFilesystem
	if p.Name == "esp" {
		kind = gpt.EFISystemPartition
	}
	return &gpt.Partition{
		Index: number,
		Name:  p.Name,
		Type:  kind,
		GUID:  guid(fmt.Sprint(number, " ", p.Name)),
		Start: uint64(start / sectorSize),
		Size:  uint64(p.Size),
	}
}

// copyTo copies the image to offset start of f.
func (p Part) copyTo(f *os.File, start int64) (err error) {
	if p.Image == "" {
		return nil
	}
	image, err := os.Open(p.Image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	n, err := io.Copy(io.NewOffsetWriter(f, start), io.LimitReader(image, p.Size+1))
	if err == nil && n > p.Size {
		err = fmt.Errorf("%s is larger than %d bytes", p.Image, p.Size)
	}
	return err
}

func guid(name string) string {
	sum := sha256.Sum256([]byte(name))
	id, _ := uuid.FromBytes(sum[:16]) // fails only for another length
	return strings.ToUpper(id.String())
}
