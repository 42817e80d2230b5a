// SPDX-License-Identifier: Apache-2.0

// Command goplugin is what targets "x a Go plugin's" are measured by: a device plugin made as they are made in
// Go, by grpc-go and the kubelet's published API, that knows its answers beforehand.
//
//	goplugin DIRECTORY DEVICES
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

const (
	endpoint = "goplugin.sock"
	resource = "baidu.com/xpu"
	look     = 20 * time.Millisecond // between looks whether the socket is still there
)

type plugin struct {
	api.UnimplementedDevicePluginServer
	list      *api.ListAndWatchResponse
	granted   *api.AllocateResponse
	preferred *api.PreferredAllocationResponse
}

func answers(devices int) *plugin {
	p := &plugin{list: &api.ListAndWatchResponse{}}
	var first []string
	for n := range devices {
		id := fmt.Sprintf("0000:%02x:%02x.0", n/256, n%256)
		p.list.Devices = append(p.list.Devices, &api.Device{ID: id, Health: api.Healthy})
		if n < 8 {
			first = append(first, id)
		}
	}
	granted := &api.ContainerAllocateResponse{Envs: map[string]string{"XPU_DEVICE_IDS": first[0]}}
	for _, path := range []string{"/dev/xpu0", "/dev/xpuctrl"} {
		node := &api.DeviceSpec{HostPath: path, ContainerPath: path, Permissions: "rw"}
		granted.Devices = append(granted.Devices, node)
	}
	p.granted = &api.AllocateResponse{ContainerResponses: []*api.ContainerAllocateResponse{granted}}
	preferred := &api.ContainerPreferredAllocationResponse{DeviceIDs: first}
	p.preferred = &api.PreferredAllocationResponse{
		ContainerResponses: []*api.ContainerPreferredAllocationResponse{preferred},
	}
	return p
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{GetPreferredAllocationAvailable: true}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	if err := stream.Send(p.list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(context.Context, *api.AllocateRequest) (*api.AllocateResponse, error) {
	return p.granted, nil
}

func (p *plugin) GetPreferredAllocation(
	context.Context, *api.PreferredAllocationRequest,
) (*api.PreferredAllocationResponse, error) {
	return p.preferred, nil
}

func (p *plugin) serve(directory string) (*grpc.Server, error) {
	path := filepath.Join(directory, endpoint)
	os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, p)
	go server.Serve(listener)
	return server, nil
}

func register(directory string) error {
	kubelet := "unix://" + filepath.Join(directory, "kubelet.sock")
	connection, err := grpc.NewClient(kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(connection).Register(ctx, &api.RegisterRequest{
		Version:      api.Version,
		Endpoint:     endpoint,
		ResourceName: resource,
		Options:      &api.DevicePluginOptions{GetPreferredAllocationAvailable: true},
	})
	return err
}

func main() {
	directory := os.Args[1]
	devices, err := strconv.Atoi(os.Args[2])
	if err != nil || devices < 1 {
		log.Fatalf("DEVICES is %q; accepted: a number of at least 1", os.Args[2])
	}
	p := answers(devices)
	for {
		server, err := p.serve(directory)
		if err != nil {
			log.Fatal(err)
		}
		for err = register(directory); err == nil; time.Sleep(look) {
			_, err = os.Stat(filepath.Join(directory, endpoint))
		}
		server.Stop() // there is no kubelet, or another one
		time.Sleep(look)
	}
}
